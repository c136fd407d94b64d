"""`distill average`: one model from the weights of several, uniformly or as a greedy soup.

Uniform: the mean of the checkpoints of a run (Izmailov et al. 2018, arXiv 1803.05407) or of several
models. Greedy: models are taken in the order of their accuracy on images put aside for it, and stay
if the mean with them is no worse there (Wortsman et al. 2022, arXiv 2203.05482, recipe 1).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from distill.checkpoint.layout import (
    METRICS_FILE,
    RECIPE_FILE,
    checkpoints_dir,
    is_checkpoint,
    step_of,
)
from distill.console import make_console, wrapped
from distill.data.holdout import Part, held_out
from distill.data.sources import Source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.metric import METRICS
from distill.evaluation.predictions import ALL_CLASSES
from distill.evaluation.scores import Scores, scores_of
from distill.models.export_format import RAW, refuse_overwrite, write_model
from distill.models.hub.derived import derived_from_all
from distill.recipe import load_recipe
from distill.release.find import Found, find_models, which_weights
from distill.release.images import labelled_in_logits, open_images, title_of
from distill.release.passes import Evaluator, Settings


@dataclass(frozen=True)
class Averaged:
    """What an average is made of.

    Attributes:
        members: the weights in it, in words.
        score: on the images that chose nothing; None without an evaluation.
    """

    output: Path
    members: tuple[str, ...]
    score: Scores | None


def average_models(
    paths: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    model: str | None = None,
    student: str | None = None,
    weights: str = RAW,
    last: int | None = None,
    best: int | None = None,
    greedy: bool = False,
    choose_on: float = 0.5,
    data: str | None = None,
    split: str | None = None,
    classes: str | None = None,
    batch_size: int | None = 256,
    num_workers: int | None = None,
    image_size: int | None = None,
) -> Averaged:
    """Averages weights and writes them in the format of timm.

    Args:
        paths: one run, whose checkpoints are averaged; or several runs (by their best weights),
            checkpoints, exports or files of weights.
        output: the folder to write.
        model: for files of weights, the timm name of their model.
        student: of the runs; needed where they have several.
        weights: of the checkpoints of one run: "raw", or an average such as "ema-0.999".
        last, best: how many checkpoints of one run; `best` by the run's own metric. None of both:
            all that the run has kept.
        greedy: choose the members on a part of the images.
        choose_on: the part of each class on which `greedy` chooses; the rest measures the result.
        data, split, classes: the images for `greedy`, as in `evaluate_models`; None: those of the
            run.
        batch_size, num_workers: as in `evaluate_models`.
        image_size: in pixels, that several models were trained on; None: as they say. Files of
            weights do not say it.

    Returns:
        What was written.

    Raises:
        InputError: there are no such weights, they are of different models, or `output` holds
            something other than an export.
    """
    output = Path(output)
    refuse_overwrite(output)
    paths = [paths] if isinstance(paths, str | Path) else paths
    where = [Path(path) for path in paths]
    if not where:
        raise InputError("name a run, or at least two models")
    if any(output.resolve() in (each.resolve(), each.resolve().parent) for each in where):
        raise InputError(f"{output}: is one of the models: choose another folder for the mean")
    if last is not None and best is not None:
        raise InputError("--last and --best both choose checkpoints: leave one out")
    if not 0 < choose_on < 1:
        raise InputError(f"--choose-on {choose_on}: should be between 0 and 1")
    if data is not None and not greedy:
        raise InputError("--data are the images on which --greedy chooses: give both")
    if _is_run(where[0]) and len(where) == 1:
        if image_size is not None:
            raise InputError("--image-size is that of files of weights: a run records its own")
        members = _of_run(where[0], student, weights, last, best)
    else:
        if last is not None or best is not None or weights != RAW:
            raise InputError("--last, --best and --weights choose checkpoints of one run")
        members = _of_places(where, model, student, image_size)
    _refuse_different(members)
    _refuse_not_finite(members)
    score = None
    if greedy:
        members, score = _greedy(
            members,
            where[0],
            choose_on,
            (data, split, classes),
            Settings(batch_size, num_workers),
        )
    result = _mean(members)
    names = tuple(each.name for each in members)
    record: dict[str, object] = {
        key: members[0].record[key] for key in ("run", "student") if key in members[0].record
    }
    record |= {
        "model": members[0].record.get("model"),
        "weights": f"mean of {len(members)}",
        "members": list(names),
        **derived_from_all([each.record for each in members]),
    }
    if score is not None:
        record |= {key: value for key, value in score.as_dict().items() if key != "images_per_s"}
        images = "the evaluation images" if data is None else title_of(data)
        record["scored_on"] = f"a part of {images}, on which no members were chosen"
    write_model(
        output,
        members[0].net,
        result,
        classes=members[0].classes,
        view=members[0].view,
        record=record,
    )
    _show(output, members, score)
    return Averaged(output, names, score)


# ---- members -------------------------------------------------------------------------------------


def _is_run(path: Path) -> bool:
    return (path / RECIPE_FILE).is_file() and not is_checkpoint(path)


def _of_run(
    run: Path, student: str | None, weights: str, last: int | None, best: int | None
) -> list[Found]:
    """The checkpoints of a run that are to be averaged, the oldest first."""
    recipe = load_recipe(run / RECIPE_FILE)
    if student is None:
        if len(recipe.students) > 1:
            raise InputError(
                f"{run}: which student? Name one with --student: {', '.join(recipe.students)}"
            )
        (student,) = recipe.students
    root = checkpoints_dir(run)
    steps = {}
    if root.is_dir():
        steps = {
            step: entry for entry in root.iterdir() if (step := step_of(entry.name)) is not None
        }
    chosen = sorted(steps)
    if last is not None:
        chosen = chosen[-last:]
    elif best is not None:
        chosen = sorted(_best_steps(run, student, weights, chosen, best))
    wanted = last or best or 2
    if len(chosen) < max(2, wanted):
        raise InputError(
            f"{run}: has {len(steps)} checkpoints, and the mean of {max(2, wanted)} is asked for:"
            " checkpoint.keep_last in the recipe says how many a run keeps"
        )
    members = []
    for step in chosen:
        (found,) = find_models(
            steps[step], model=None, student=student, weights=weights, image_size=None
        )
        members.append(replace(found, name=which_weights(found)))
    return members


def _best_steps(
    run: Path, student: str, weights: str, steps: Sequence[int], count: int
) -> list[int]:
    """The steps of the checkpoints with the best values of the run's metric."""
    metric = METRICS[load_recipe(run / RECIPE_FILE).evaluate.metric]
    key = student if weights == RAW else f"{student}/{weights}"
    values: dict[int, float] = {}
    try:
        lines = (run / METRICS_FILE).read_bytes().splitlines()
    except OSError as error:
        raise InputError(
            f"{run / METRICS_FILE}: cannot be read ({error}), and it says which checkpoints are the"
            " best: use --last"
        ) from error
    for line in lines:
        try:
            record = json.loads(line)
            step, value = record["step"], record["models"][key][metric.name]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # another event, or a line that is damaged or being written
        if step in steps and isinstance(value, int | float) and math.isfinite(value):
            values[step] = value
    if len(values) < count:
        raise InputError(
            f"{run}: {len(values)} of its {len(steps)} checkpoints were evaluated, and --best"
            f" {count} is asked for: evaluate.every and checkpoint.every in the recipe say when"
        )
    ranked = sorted(values, key=lambda step: values[step], reverse=metric.higher_is_better)
    return ranked[:count]


def _of_places(
    paths: Sequence[Path], model: str | None, student: str | None, image_size: int | None
) -> list[Found]:
    members = []
    if student is not None and not any(_is_run(path) or is_checkpoint(path) for path in paths):
        raise InputError(f"--student {student}: picks among the students of a run: leave it out")
    for path in paths:
        own = student if _is_run(path) or is_checkpoint(path) else None
        found = find_models(
            path,
            model=model if path.is_file() else None,
            student=own,
            weights="best",
            image_size=image_size,
        )
        if len(found) > 1:
            names = ", ".join(each.name for each in found)
            raise InputError(f"{path}: which student? Name one with --student: {names}")
        members.append(replace(found[0], name=str(found[0].record.get("hub", path))))
    if len(members) < 2:
        raise InputError(f"{paths[0]}: is one model: give at least two, or a run with checkpoints")
    return members


def _refuse_different(members: Sequence[Found]) -> None:
    """Raises InputError if the members are not the same model for the same classes."""
    first = members[0]
    shapes = {name: tensor.shape for name, tensor in first.net.state_dict().items()}
    for other in members[1:]:
        theirs = {name: tensor.shape for name, tensor in other.net.state_dict().items()}
        if theirs != shapes:
            names = sorted(
                {
                    name
                    for name in shapes.keys() | theirs.keys()
                    if shapes.get(name) != theirs.get(name)
                }
            )
            raise InputError(
                f"{other.name}: is another model than {first.name} (they differ in {names[0]}): the"
                " mean needs weights of one model"
            )
        if other.classes != first.classes:
            raise InputError(f"{other.name}: has other classes than {first.name}")
        if other.view.values != first.view.values:
            raise InputError(
                f"{other.name}: sees images in another way than {first.name}"
                f" ({other.view.values}; {first.view.values})"
            )


def _refuse_not_finite(members: Sequence[Found]) -> None:
    """Raises InputError if a weight is NaN or infinite: it would be so in the mean."""
    for each in members:
        for name, tensor in each.net.state_dict().items():
            if not tensor.isfinite().all():
                raise InputError(
                    f"{each.name}: {name} has values that are not finite: leave it out"
                )


# ---- the mean ------------------------------------------------------------------------------------


def _mean(members: Sequence[Found]) -> dict[str, Tensor]:
    """The mean of all floating-point tensors, summed in float64; counters are those of the last."""
    states = [each.net.state_dict() for each in members]
    result = {}
    for name, tensor in states[-1].items():
        if tensor.is_floating_point():
            total = sum(state[name].double() for state in states)
            assert isinstance(total, Tensor)
            result[name] = (total / len(states)).to(tensor.dtype)
        else:
            result[name] = tensor
    return result


def _greedy(
    members: list[Found],
    path: Path,
    choose_on: float,
    images: tuple[str | None, str | None, str | None],
    settings: Settings,
) -> tuple[list[Found], Scores]:
    """Choose members on a part of the images, and score their mean on the rest."""
    if not members[0].has_classes:
        raise InputError(
            "--greedy: chooses by accuracy, and these models have no classifier: leave it out"
        )
    recipe = load_recipe(path / RECIPE_FILE) if (path / RECIPE_FILE).is_file() else None
    source, order_given = open_images(*images, recipe, path)
    if not isinstance(source.labels, np.ndarray):
        raise InputError(
            "--greedy: chooses on a part of the images, for which every label must be known: give"
            " images in a folder or a table with --data"
        )
    named, _ = labelled_in_logits(source, order_given, members[0])
    aside = held_out(source, choose_on)
    if not aside.any():
        raise InputError("--greedy: no class has two images, so none can be put aside")
    chooses, measures = Part(named, aside), Part(named, ~aside)
    engine = Engine(precision="fp32")
    try:
        alone = _scores(members, chooses, engine, settings)
        ranked = sorted(members, key=lambda each: -alone[each.name].top1)
        taken, best = [ranked[0]], alone[ranked[0].name].top1
        console = make_console()
        for candidate in ranked[1:]:
            top1 = _score_of_mean([*taken, candidate], chooses, engine, settings).top1
            stays = top1 >= best
            console.print(
                f"{candidate.name}: {top1:.2f} % with it, {best:.2f} % without:"
                f" {'taken' if stays else 'left out'}",
                markup=False,
                soft_wrap=True,
            )
            if stays:
                taken, best = [*taken, candidate], top1
        return taken, _score_of_mean(taken, measures, engine, settings)
    finally:
        engine.close()


def _scores(
    members: Sequence[Found], source: Source, engine: Engine, settings: Settings
) -> dict[str, Scores]:
    answers = Evaluator(list(members), None, engine, settings).answers(source)
    return {each.name: scores_of(answers.of[each.name, ALL_CLASSES]) for each in members}


def _score_of_mean(
    members: Sequence[Found], source: Source, engine: Engine, settings: Settings
) -> Scores:
    """The scores of the mean; the members keep their weights."""
    first = members[0]
    own = {name: tensor.clone() for name, tensor in first.net.state_dict().items()}
    first.net.load_state_dict(_mean(members))
    try:
        return _scores([first], source, engine, settings)[first.name]
    finally:
        first.net.load_state_dict(own)


def _show(output: Path, members: Sequence[Found], score: Scores | None) -> None:
    console = make_console()

    def say(line: str) -> None:
        console.print(wrapped(console, line), markup=False, soft_wrap=True)

    say(f"{output}: the mean of {', '.join(each.name for each in members)}")
    if score is not None:
        say(
            f"top-1 {score.top1:.2f} ± {score.top1_error:.2f} % on the {score.num_samples} images"
            " that did not choose"
        )
    if any(isinstance(module, _BatchNorm) for module in members[0].net.modules()):
        say(
            "its BatchNorm has the mean of the running statistics, as weight averages of a run have"
            " them: evaluate it before you use it"
        )
    if (warning := members[0].size_warning) is not None:
        say(f"warning: {warning}")
