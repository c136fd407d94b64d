"""`distill export`: one student of a run in the form that timm loads, or as a program."""

from pathlib import Path
from typing import Literal, get_args

import torch
from rich.console import Console

from distill.checkpoint.layout import RECIPE_FILE, best_dir, is_checkpoint, reported_best
from distill.console import make_console
from distill.errors import InputError
from distill.evaluation.metric import METRICS
from distill.files import atomic_directory, current_directory
from distill.models.export_format import (
    describe_model,
    is_export,
    read_record,
    refuse_overwrite,
    write_model,
)
from distill.models.pixels import Network
from distill.recipe import load_recipe
from distill.release.deploy import Comparison, DeployFormat, compare, require, write_program
from distill.release.find import Found, find_models, which_weights

ExportFormat = Literal["timm", "onnx", "torch-export"]
_NUM_CHECKED = 64


def export_student(
    run: str | Path,
    output: str | Path,
    *,
    student: str | None = None,
    weights: str = "best",
    format: ExportFormat = "timm",
) -> Comparison | None:
    """Writes one student of a run: in the format of timm (safetensors, config.json, class names),
    or as one program with config.json.

    `timm.create_model("local-dir:OUTPUT", pretrained=True)` loads the format of timm.

    Args:
        run: the folder of a run, one of its checkpoints, or an export.
        output: the folder to write.
        student: its name; None: the best student of the run.
        weights: "best"; or from the newest checkpoint "raw" or an average, "ema-0.999".
        format: "timm", "onnx" (model.onnx) or "torch-export" (model.pt2); the latter two take
            images [B, 3, S, S] in [0, 1].

    Returns:
        How the answers of a program compare with those of the model; None in the format of timm.

    Raises:
        InputError: no such student or weights, `output` holds something other than an export, or
            the program gives other answers than the model.
    """
    run, output = Path(run), Path(output)
    if format not in get_args(ExportFormat):
        raise InputError(f"--format {format}: should be one of {', '.join(get_args(ExportFormat))}")
    refuse_overwrite(output)
    if output.resolve() == run.resolve():
        raise InputError(f"{output}: is what is exported: choose another folder")
    if format != "timm":
        require(format)
    if run.is_file():
        raise InputError(f"{run}: an export is made from a run or a checkpoint, and this is a file")
    if student is None and not is_export(run) and (run / RECIPE_FILE).is_file():
        student = best_student(run)
    (found,) = find_models(run, model=None, student=student, weights=weights, image_size=None)
    console = make_console()
    if format != "timm":
        return _write_program(found, output, format, console)
    write_model(
        output,
        found.net,
        found.net.state_dict(),
        classes=found.classes,
        view=found.view,
        record=found.record,
    )
    score = found.record.get("top1")
    top1 = "" if score is None else f", top-1 {score:.2f} %"
    name = found.record.get("student", found.name)
    console.print(f"{output}: {name}, {which_weights(found)}{top1}", markup=False, soft_wrap=True)
    needs = (
        "import distill.models; " if str(found.record.get("model", "")).startswith("cifar_") else ""
    )
    console.print(
        f"load it: python -c \"{needs}import timm; timm.create_model('local-dir:{output}',"
        ' pretrained=True)"',
        markup=False,
        soft_wrap=True,
    )
    return None


def _write_program(
    found: Found, output: Path, format: DeployFormat, console: Console
) -> Comparison:
    """Write a model as a program, and compare their answers on noise.

    Raises:
        InputError: they differ; nothing is written.
    """
    size = found.view.image_size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(_NUM_CHECKED, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    network = Network(found.net, found.pixels).eval()
    with atomic_directory(output) as directory:
        write_program(network, images, directory, format)
        compared = compare(network, images, directory, format)
        if found.has_classes and compared.same_top1 < compared.num_images:
            raise InputError(
                f"--format {format}: the program names another class than the model for"
                f" {compared.num_images - compared.same_top1} of {compared.num_images} images"
                f" (largest difference of a logit {compared.largest:.3g}): use --format timm"
            )
        describe_model(
            directory, found.net, classes=found.classes, view=found.view, record=found.record
        )
    name = found.record.get("student", found.name)
    same, largest = f"on {compared.num_images} images", f"{compared.largest:.3g}"
    if found.has_classes:
        agrees = f"same top-1 as the model {same}; largest difference of a logit {largest}"
        num_classes = len(found.classes) or int(found.net.num_classes)  # type: ignore[arg-type]
        gives = f"logits of {num_classes} classes"
    else:
        agrees = f"largest difference of a feature from the model's {same}: {largest}"
        gives = f"{int(found.net.num_features)} features"  # type: ignore[arg-type]
    for line in (
        f"{output}: {name}, {which_weights(found)}, as {format}",
        agrees,
        f"input: images [B, 3, {size}, {size}] in [0, 1], RGB; output: {gives}",
    ):
        console.print(line, markup=False, soft_wrap=True)
    return compared


def best_student(run: Path) -> str:
    """The best student of a run, complete or not.

    Raises:
        InputError: there are several, and no record says which is best.
    """
    recipe = load_recipe(run / RECIPE_FILE)
    names = list(recipe.students)
    if len(names) == 1:
        return names[0]
    if not is_checkpoint(run):
        if best := reported_best(run):
            return best
        folders = {name: current_directory(best_dir(run, name)) for name in names}
        metric = METRICS[recipe.evaluate.metric]
        scores = {
            name: read_record(folder).get(metric.name)
            for name, folder in folders.items()
            if folder is not None
        }
        if best := metric.best_of(scores):
            return best
    raise InputError(f"{run}: which student? Name one with --student: {', '.join(names)}")
