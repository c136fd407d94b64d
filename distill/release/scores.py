"""Evaluate the models at a path: one pass over the images, a table, the scores by name."""

from functools import partial
from pathlib import Path
from typing import Literal

from rich.table import Table

from distill.checkpoint.layout import RECIPE_FILE
from distill.console import make_console, show_table
from distill.data.relabelled import Relabelled
from distill.data.sources import Source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER, Accuracy, TeacherAnswers, evaluate
from distill.evaluation.sets import eval_loader, teacher_doubts
from distill.models.labels import Match, match_classes
from distill.models.pixels import Network
from distill.models.plausible import doubts
from distill.models.teacher import Teacher, build_teacher
from distill.recipe import Recipe, load_recipe
from distill.release.find import Found, find_models
from distill.release.images import in_command_words, open_images
from distill.training.build import place_teacher
from distill.training.summary import TEACHER_COLUMNS

Precision = Literal["fp32", "bf16", "fp16"]
Unreadable = Literal["error", "skip"]


def evaluate_models(
    path: str | Path,
    *,
    model: str | None = None,
    student: str | None = None,
    weights: str = "best",
    data: str | None = None,
    split: str | None = None,
    classes: str | None = None,
    batch_size: int = 256,
    num_workers: int | None = None,
    precision: Precision = "fp32",
    image_size: int | None = None,
    unreadable: Unreadable = "error",
) -> dict[str, Accuracy]:
    """Evaluates models on images and prints a table. Collective under a launcher.

    Args:
        path: the folder of a run, a checkpoint or an export, or a file of weights.
        model: for a file of weights, the timm name of its model.
        student: for a run, the only student to evaluate.
        weights: for a run, "best"; or from its newest checkpoint "raw" or an average, "ema-0.999".
        data: an image folder, a Parquet or Arrow file, a saved data set, or "fashion_mnist"; None:
            the evaluation images of the run.
        split: the split of `data`, if it has several.
        classes: a file with one class name per line, or "imagenet-1k", if `data` contains only some
            of the classes.
        batch_size: images in a batch of each process.
        num_workers: decoding processes; None: the CPU cores.
        precision: the data type of computations.
        image_size: in pixels; None: that of the model.
        unreadable: what to do with an image that cannot be read.

    Returns:
        The accuracy of each model, by name; of a run also that of its teacher.

    Raises:
        InputError: there are no such models or images, or they do not fit together.
    """
    path = Path(path)
    found = find_models(path, model=model, student=student, weights=weights, image_size=image_size)
    recipe = load_recipe(path / RECIPE_FILE) if (path / RECIPE_FILE).is_file() else None
    opened, order_given = open_images(data, split, classes, recipe, path)
    match = _match(found, opened, order_given)
    source = _in_logits(opened, match, found[0].classes)
    teacher = _teacher(recipe, source) if data is None else None
    engine = Engine(precision=precision)
    try:
        results = _evaluate(found, source, teacher, engine, batch_size, num_workers, unreadable)
    except InputError as error:
        raise InputError(in_command_words(str(error))) from error
    finally:
        engine.close()
    if engine.is_main:
        samples = next(iter(results.values()))
        skipped = f", {samples.num_skipped} unreadable skipped" if samples.num_skipped else ""
        console = make_console()
        console.print(
            f"{path}: {samples.num_samples} images{skipped}", markup=False, soft_wrap=True
        )
        if match.how != "names" or not match.in_order:
            console.print(match.describe(), markup=False, soft_wrap=True)
        show_table(console, _table(found, results))  # first, for programs that look for its figures
        for line in _views(found, teacher):
            console.print(line, markup=False, soft_wrap=True)
        for doubt in _doubts(found, teacher, results):
            console.print(f"warning: {doubt}", markup=False, soft_wrap=True)
    return results


def _match(found: list[Found], source: Source, order_given: bool) -> Match:
    """Match logits and classes of the data; the models of one run have the same match."""
    matches = []
    for each in found:
        num_classes = int(each.net.num_classes)  # type: ignore[arg-type]
        matches.append(
            match_classes(
                each.classes or None,
                num_classes,
                source.classes,
                who=each.name,
                order_given=order_given,
            )
        )
    assert len({(match.num_logits, match.logits.tobytes()) for match in matches}) == 1
    return matches[0]


def _in_logits(source: Source, match: Match, classes: tuple[str, ...]) -> Source:
    """The source with the model's logits as labels."""
    if match.in_order:
        return source
    return Relabelled(source, match.logits, classes or tuple(map(str, range(match.num_logits))))


def _evaluate(
    found: list[Found],
    source: Source,
    teacher: Teacher | None,
    engine: Engine,
    batch_size: int,
    num_workers: int | None,
    unreadable: Unreadable,
) -> dict[str, Accuracy]:
    """Evaluate in one pass for each view, the teacher's own included."""
    placed = place_teacher(teacher, engine)
    # Batches are filled up to their size.
    batch_size = min(batch_size, -(-len(source) // engine.world_size))
    results: dict[str, Accuracy] = {}
    loader_of = partial(
        eval_loader,
        source,
        engine=engine,
        batch_size=batch_size,
        num_workers=num_workers,
        unreadable=unreadable,
    )
    frames = list(dict.fromkeys(each.view.frame for each in found))
    for frame in frames:
        networks = {
            each.name: engine.place(Network(each.net, each.pixels)).eval()
            for each in found
            if each.view.frame == frame
        }
        with loader_of(frame) as loader:
            results |= evaluate(
                networks, loader, engine, TeacherAnswers(placed) if placed else None
            )
    if teacher is not None and placed is not None and teacher.view.frame not in frames:
        with loader_of(teacher.view.frame) as loader:
            results |= evaluate({TEACHER: placed}, loader, engine)
    return results


def _views(found: list[Found], teacher: Teacher | None) -> list[str]:
    """A line a view with the models that see it, then what was adapted of their weights."""
    views = {each.name: each.view for each in found} | ({TEACHER: teacher.view} if teacher else {})
    names: dict[str, list[str]] = {}
    for name, view in views.items():
        names.setdefault(view.describe(), []).append(name)
    lines = [
        f"{', '.join(models)} see{'s' if len(models) == 1 else ''} {line}"
        for line, models in names.items()
    ]
    return [*lines, *(f"{each.name}: {note}" for each in found for note in each.notes)]


def _doubts(found: list[Found], teacher: Teacher | None, results: dict[str, Accuracy]) -> list[str]:
    """Warnings about an assumed image size, and about accuracies no better than chance or far below
    what a record promises.
    """
    warnings = []
    for each in found:
        score, num_classes = results[each.name], int(each.net.num_classes)  # type: ignore[arg-type]
        assert score.top1 is not None
        if each.view.sources["image_size"].startswith("assumed"):
            warnings.append(
                f"{each.name}: its file does not say on which image size it was trained;"
                f" {each.view.image_size} px is timm's size of the model: give --image-size if it"
                " is another"
            )
        warnings += doubts(
            each.name,
            score.top1,
            score.num_samples,
            num_classes,
            sees=each.view.describe(),
            promise=each.promise,
        )
    return [*warnings, *teacher_doubts(teacher, results.get(TEACHER))]


def _teacher(recipe: Recipe | None, source: Source) -> Teacher | None:
    """The run's own teacher, if its weights are still available."""
    if recipe is None or recipe.teacher is None:
        return None
    try:
        # The run trained with this teacher, so the order of its classes was checked then.
        return build_teacher(
            recipe.teacher,
            classes=source.classes,
            root=Path(),
            device="cpu",
            data_image_size=recipe.data.image_size,
            order_given=True,
        )
    except InputError as error:
        make_console(stderr=True).print(
            f"without the teacher: {error}", markup=False, soft_wrap=True
        )
        return None


def _table(found: list[Found], results: dict[str, Accuracy]) -> Table:
    with_teacher = TEACHER in results
    table = Table(box=None, pad_edge=False)
    for heading in (
        "",
        "weights",
        "top-1 %",
        "top-5 %",
        "cross-entropy",
        *(TEACHER_COLUMNS if with_teacher else ()),
    ):
        table.add_column(heading, justify="left" if heading in ("", "weights") else "right")
    notes = {each.name: str(each.record.get("weights", "")) for each in found}
    for name, result in results.items():
        versus = [
            "" if result.agreement is None else f"{result.agreement:.2f}",
            "" if result.teacher_kl is None else f"{result.teacher_kl:.4f}",
        ]
        scores = f"{result.top1:.2f}", f"{result.top5:.2f}", f"{result.loss:.4f}"
        table.add_row(name, notes.get(name, ""), *scores, *(versus if with_teacher else ()))
    return table
