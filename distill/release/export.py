"""Write one student of a run in the form that timm loads."""

import json
from pathlib import Path

from distill.checkpoint.layout import RECIPE_FILE, REPORT_FILE, best_dir, is_checkpoint
from distill.console import make_console
from distill.errors import InputError
from distill.evaluation.metric import METRICS
from distill.files import current_directory
from distill.models.export_format import is_export, read_record, refuse_overwrite, write_model
from distill.recipe import load_recipe
from distill.release.find import find_models, which_weights


def export_student(
    run: str | Path, output: str | Path, *, student: str | None = None, weights: str = "best"
) -> None:
    """Writes one student of a run in the format of timm: safetensors, config.json, class names.

    `timm.create_model("local-dir:OUTPUT", pretrained=True)` loads it.

    Args:
        run: the folder of a run, or one of its checkpoints.
        output: the folder to write.
        student: its name; None: the best student of the run.
        weights: "best"; or from the newest checkpoint "raw" or an average, "ema-0.999".

    Raises:
        InputError: no such student or weights, or `output` holds something other than an export.
    """
    run, output = Path(run), Path(output)
    refuse_overwrite(output)
    if run.is_file():
        raise InputError(f"{run}: an export is made from a run or a checkpoint, and this is a file")
    if student is None and not is_export(run) and (run / RECIPE_FILE).is_file():
        student = best_student(run)
    (found,) = find_models(run, model=None, student=student, weights=weights, image_size=None)
    write_model(
        output,
        found.net,
        found.net.state_dict(),
        classes=found.classes,
        view=found.view,
        record=found.record,
    )
    console = make_console()
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
        if best := _reported_best(run):
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


def _reported_best(run: Path) -> str | None:
    """The best student of a finished run, as its report says; None without a report.

    Raises:
        InputError: the report is damaged.
    """
    report = run / REPORT_FILE
    if not report.is_file():
        return None
    try:
        best: str | None = json.loads(report.read_text())["best"]
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{report}: damaged ({error}): delete it, and name the student") from error
    return best
