"""Finished weights, wherever they lie: found, judged on a set, exported. What `distill evaluate` and `distill export` do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from rich.table import Table
from timm.data import ImageNetInfo
from torch import nn

from distill.build import eval_loader, place_teacher, student_pixels
from distill.checkpoint import Checkpoint, current_directory, load
from distill.console import make_console
from distill.data.sources import Source, open_source
from distill.engine import Engine
from distill.errors import InputError, nearest
from distill.evaluate import Accuracy, TeacherAnswers, evaluate
from distill.export import WEIGHTS_FILE, class_names, is_export, read_record, write_model
from distill.models.build import config, create
from distill.models.labels import check_label_space, comparable_classes
from distill.models.pixels import Pixels, pixel_config
from distill.models.teacher import Teacher, build_teacher
from distill.models.weights import apply_weights, load_state_dict
from distill.recipe import Recipe, load_recipe, schema
from distill.rundir import RECIPE_FILE, best_dir, best_student, newest_checkpoint
from distill.students import Network

Precision = Literal["fp32", "bf16", "fp16"]
Unreadable = Literal["error", "skip"]
_ANY_SOURCE: TypeAdapter[schema.Source] = TypeAdapter(schema.Source)


@dataclass
class Found:
    """A model with its weights, on the CPU. `classes` is empty where nobody recorded them."""

    name: str
    net: nn.Module
    pixels: Pixels
    image_size: int
    eval_view: schema.EvalView
    classes: tuple[str, ...]
    record: dict[str, Any]


# ---- finding ---------------------------------------------------------------------------------------------------------


def find_models(
    path: Path, *, model: str | None, student: str | None, weights: str, image_size: int | None
) -> list[Found]:
    """The models that a path holds: those of a run or a checkpoint, an export, or a file of weights.

    Raises:
        InputError: nothing of the kind is there, or what is asked for is not in it.
    """
    if path.is_file():
        return [_from_file(path, model, image_size)]
    if model is not None:
        raise InputError(
            f"--model names the architecture of a file of weights, and {path} is {'a folder, which names its own' if path.is_dir() else 'not there'}"
        )
    if not path.is_dir():
        raise InputError(f"{path}: there is no such run, checkpoint, export or file")
    if is_export(path):
        return [_from_export(path, path.name, image_size)]
    if (path / RECIPE_FILE).is_file():
        is_checkpoint = (path / "manifest.json").is_file()
        recipe = load_recipe(path / RECIPE_FILE)
        names = [student] if student else list(recipe.students)
        for name in names:
            if name not in recipe.students:
                raise InputError(
                    f"{path}: no student {name!r}{nearest(name, recipe.students)}; it has {', '.join(recipe.students)}"
                )
        if is_checkpoint:
            return _from_checkpoint(load(path), recipe, names, "last" if weights == "best" else weights)
        if weights != "best":
            return _from_checkpoint(newest_checkpoint(path), recipe, names, weights)
        folders = {name: current_directory(best_dir(path, name)) for name in names}
        found = [_from_export(folder, name, image_size) for name, folder in folders.items() if folder is not None]
        if not found:
            raise InputError(
                f"{path}: this run has not been evaluated yet and holds no best weights; --weights last takes its newest checkpoint"
            )
        return found
    raise InputError(
        f"{path}: neither a run (recipe.yaml), a checkpoint (manifest.json) nor an export (config.json and {WEIGHTS_FILE})"
    )


def _from_export(folder: Path, name: str, image_size: int | None) -> Found:
    known = config(f"local-dir:{folder}")
    net = create(f"local-dir:{folder}", num_classes=None, image_size=image_size)
    state_dict, _ = load_state_dict(folder / WEIGHTS_FILE)
    apply_weights(net, state_dict, f"{folder / WEIGHTS_FILE}")
    return Found(
        name=name,
        net=net,
        pixels=Pixels(known["mean"], known["std"]),
        image_size=image_size or int(known["input_size"][-1]),
        eval_view=_view(known),
        classes=class_names(folder),
        record=read_record(folder),
    )


def _from_file(path: Path, model: str | None, image_size: int | None) -> Found:
    if model is None:
        raise InputError(f"{path}: a file of weights does not name its architecture: give --model and a timm name")
    state_dict, note = load_state_dict(path)
    net = create(model, num_classes=None, image_size=image_size)
    apply_weights(net, state_dict, f"{path} for {model}")
    wants = pixel_config(net)
    return Found(
        name=path.stem,
        net=net,
        pixels=Pixels(wants.mean, wants.std),
        image_size=image_size or wants.image_size,
        eval_view=_view(config(model)),
        classes=(),
        record={"model": model, "weights": note},
    )


def _from_checkpoint(checkpoint: Checkpoint, recipe: Recipe, names: list[str], weights: str) -> list[Found]:
    classes = tuple(checkpoint.values["classes"])
    found = []
    for name in names:
        spec = recipe.students[name]
        held = sorted(
            stem.removeprefix(f"{name}.")
            for stem in (file.removesuffix(".safetensors") for file in checkpoint.manifest["files"])
            if stem.startswith((f"{name}.model", f"{name}.ema-"))
        )
        which = "model" if weights == "last" else weights
        if which not in held:
            choices = ", ".join("last" if stem == "model" else stem for stem in held) or "nothing: it has stopped"
            raise InputError(f"{checkpoint.path}: no weights {weights!r} of {name}; it holds {choices}")
        net = create(
            spec.model, num_classes=len(classes), image_size=recipe.data.image_size, model_args=spec.model_args
        )
        tensors = {k: v for k, v in checkpoint.tensors(f"{name}.{which}").items() if not k.startswith("ema/")}
        apply_weights(net, tensors, f"{checkpoint.path}/{name}.{which}")
        found.append(
            Found(
                name=name,
                net=net,
                pixels=student_pixels(net, spec),
                image_size=recipe.data.image_size,
                eval_view=recipe.data.eval_view,
                classes=classes,
                record={
                    "run": recipe.name,
                    "student": name,
                    "model": spec.model,
                    "weights": weights,
                    "step": checkpoint.state.step,
                },
            )
        )
    return found


def _view(known: dict[str, Any]) -> schema.EvalView:
    bilinear = known.get("interpolation") == "bilinear"
    return schema.EvalView(
        crop_fraction=float(known.get("crop_pct") or 0.875), interpolation="bilinear" if bilinear else "bicubic"
    )


# ---- judging ---------------------------------------------------------------------------------------------------------


def guess_source(path: str, classes: str | None) -> schema.Source:
    """The kind of data that lies at a path.

    Raises:
        InputError: nothing is there.
    """
    place = Path(path)
    spec: dict[str, Any] = {"path": path, "classes": classes}
    if path == "fashion_mnist":
        spec = {"kind": "fashion_mnist", "split": "test"}
    elif not place.exists() and "*" not in path:
        raise InputError(f"--data {path}: there is no such file or folder")
    elif any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        spec |= {"kind": "saved", **({"split": "test"} if (place / "dataset_dict.json").is_file() else {})}
    elif path.endswith(".arrow") or any(place.glob("*.arrow")):
        spec |= {"kind": "arrow"}
    elif path.endswith(".parquet") or any(place.glob("*.parquet")):
        spec |= {"kind": "parquet"}
    elif (place / "t10k-images-idx3-ubyte.gz").is_file():
        spec = {"kind": "fashion_mnist", "split": "test", "path": path}
    else:
        spec |= {"kind": "image_folder"}
    return _ANY_SOURCE.validate_python(spec)


def _class_list(classes: str | None, scratch: Path) -> str | None:
    """A file of class names; "imagenet-1k" and timm's other subsets are written to one."""
    if classes is None or Path(classes).is_file():
        return classes
    try:
        names = ImageNetInfo(classes).label_names()
    except (AssertionError, FileNotFoundError, KeyError) as error:
        raise InputError(
            f"--classes {classes}: neither a file nor a label set of timm's such as imagenet-1k"
        ) from error
    (scratch / "classes.txt").write_text("\n".join(names))
    return str(scratch / "classes.txt")


def judge(
    path: Path,
    *,
    model: str | None,
    student: str | None,
    weights: str,
    data: str | None,
    classes: str | None,
    batch_size: int,
    num_workers: int | None,
    precision: Precision,
    image_size: int | None,
    unreadable: Unreadable,
) -> dict[str, Accuracy]:
    """Judge what lies at a path, show a table, return the scores by name. Collective under a launcher."""
    import tempfile

    found = find_models(path, model=model, student=student, weights=weights, image_size=image_size)
    recipe = load_recipe(path / RECIPE_FILE) if (path / RECIPE_FILE).is_file() else None
    with tempfile.TemporaryDirectory() as scratch:
        if data is not None:
            source = open_source(guess_source(data, _class_list(classes, Path(scratch))), Path(), "--data")
        elif recipe is not None and recipe.data.eval is not None:
            source = open_source(recipe.data.eval, Path(recipe.data.root), "data.eval")
        else:
            raise InputError(f"{path} does not say what to judge it on: give --data")
    for each in found:
        num_classes = int(each.net.num_classes)  # type: ignore[arg-type]
        check_label_space(
            comparable_classes(each.classes or None, num_classes, source.classes), num_classes, source.classes
        )
    teacher = _teacher(recipe, source) if data is None else None
    engine = Engine(precision=precision)
    try:
        results = _judge(found, source, teacher, engine, batch_size, num_workers, unreadable)
        if engine.is_main:
            samples = next(iter(results.values()))
            skipped = f", {samples.num_skipped} unreadable skipped" if samples.num_skipped else ""
            console = make_console()
            console.print(f"{path}: {samples.num_samples} images{skipped}", markup=False, soft_wrap=True)
            console.print(_table(found, results))
    finally:
        engine.close()
    return results


def _judge(
    found: list[Found],
    source: Source,
    teacher: Teacher | None,
    engine: Engine,
    batch_size: int,
    num_workers: int | None,
    unreadable: Unreadable,
) -> dict[str, Accuracy]:
    """One pass for models of one view; another pass for each other view."""
    answers_of = place_teacher(teacher, engine)
    results: dict[str, Accuracy] = {}
    for view in dict.fromkeys((each.image_size, each.eval_view) for each in found):
        image_size, eval_view = view
        networks = {
            each.name: engine.place(Network(each.net, each.pixels)).eval()
            for each in found
            if (each.image_size, each.eval_view) == view
        }
        with eval_loader(
            source,
            eval_view,
            engine,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            unreadable=unreadable,
        ) as loader:
            results |= evaluate(networks, loader, engine, TeacherAnswers(answers_of) if answers_of else None)
    return results


def _teacher(recipe: Recipe | None, source: Source) -> Teacher | None:
    """The run's own teacher, where its weights are still to be had."""
    if recipe is None or recipe.teacher is None:
        return None
    try:
        return build_teacher(recipe.teacher, classes=source.classes, root=Path(), device="cpu")
    except InputError as error:
        make_console(stderr=True).print(f"without the teacher: {error}", markup=False, soft_wrap=True)
        return None


def _table(found: list[Found], results: dict[str, Accuracy]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "weights", "top-1 %", "top-5 %", "cross-entropy", "agrees %", "KL to teacher"):
        table.add_column(heading, justify="left" if heading in ("", "weights") else "right")
    notes = {each.name: str(each.record.get("weights", "")) for each in found}
    for name, result in results.items():
        versus = (
            "" if result.agreement is None else f"{result.agreement:.2f}",
            "" if result.teacher_kl is None else f"{result.teacher_kl:.4f}",
        )
        table.add_row(
            name, notes.get(name, ""), f"{result.top1:.2f}", f"{result.top5:.2f}", f"{result.loss:.4f}", *versus
        )
    return table


# ---- exporting -------------------------------------------------------------------------------------------------------


def export_student(run: Path, output: Path, *, student: str | None, weights: str) -> None:
    """Write one student of a run to `output`, in the form that timm loads."""
    if student is None and (run / RECIPE_FILE).is_file():
        student = best_student(run) or next(iter(load_recipe(run / RECIPE_FILE).students))
    (found,) = find_models(run, model=None, student=student, weights=weights, image_size=None)
    write_model(
        output,
        found.net,
        found.net.state_dict(),
        classes=found.classes,
        pixels=found.pixels,
        image_size=found.image_size,
        eval_view=found.eval_view,
        record=found.record,
    )
    console = make_console()
    score = found.record.get("top1")
    what = f"{found.record.get('student', found.name)}, {found.record.get('weights', weights)} weights" + (
        f", top-1 {score:.2f} %" if score is not None else ""
    )
    console.print(f"{output}: {what}", markup=False, soft_wrap=True)
    needs = "import distill.models; " if str(found.record.get("model", "")).startswith("cifar_") else ""
    console.print(
        f"load it: python -c \"{needs}import timm; timm.create_model('local-dir:{output}', pretrained=True)\"",
        markup=False,
        soft_wrap=True,
    )
