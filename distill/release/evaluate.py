"""`distill evaluate`: the models at a path on a set of images, or on several sets."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from distill.checkpoint.layout import RECIPE_FILE
from distill.console import make_console, show_table, wrapped
from distill.data.label_sets import named_list, space_of_size
from distill.data.sources import Source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER
from distill.evaluation.scores import Scores, scores_of
from distill.models.labels import Match, match_classes
from distill.models.plausible import doubts
from distill.models.teacher import Teacher, build_teacher
from distill.recipe import Recipe, load_recipe
from distill.release.find import Found, find_model, find_models
from distill.release.imagenet import named_sets
from distill.release.images import in_command_words, labelled_in_logits, open_images, title_of
from distill.release.passes import Evaluator, Settings, Unreadable
from distill.release.results import Results, SetResult
from distill.release.sets import SetEvaluation, measurements

Precision = Literal["fp32", "bf16", "fp16"]


def evaluate_models(
    path: str | Path,
    *,
    model: str | None = None,
    student: str | None = None,
    weights: str = "best",
    data: str | Path | None = None,
    split: str | None = None,
    classes: str | None = None,
    sets: str | Sequence[str] | None = None,
    root: str | Path | None = None,
    teacher: str | Path | None = None,
    teacher_model: str | None = None,
    batch_size: int | None = 256,
    num_workers: int | None = None,
    precision: Precision = "fp32",
    image_size: int | None = None,
    use_train_size: bool = False,
    unreadable: Unreadable = "error",
    json: str | Path | None = None,
    csv: str | Path | None = None,
) -> Results:
    """Evaluates models on images and prints a table. Collective under a launcher.

    Args:
        path: the folder of a run, a checkpoint or an export, a file of weights, a model of the Hub
            (hf://OWNER/NAME), or the name of a model of timm.
        model: for a file of weights, the timm name of its model.
        student: for a run, the only student to evaluate.
        weights: for a run, "best"; or from its newest checkpoint "raw" or an average, "ema-0.999".
        data: an image folder, a Parquet or Arrow file, a saved data set, a stream, or
            "fashion_mnist"; None: the evaluation images of the run, or `sets`.
        split: the split of `data`, if it has several.
        classes: a file with one class name per line, or "imagenet-1k", if `data` contains only some
            of the classes.
        sets: sets of ImageNet, and others by NAME=PATH: "val,real,v2,a,r", or a list of them.
        root: the folder in which those of `sets` without a path are.
        teacher: a model to compare with, as `path`; None: for a run on its own images its teacher.
        teacher_model: for a file as `teacher`, the timm name of its model.
        batch_size: images in a batch of each process; None: the largest that fits.
        num_workers: decoding processes; None: the CPU cores.
        precision: the data type of computations.
        image_size: in pixels; None: that of the model, as timm evaluates it.
        use_train_size: use the size that a model was trained with where its config has another one
            for tests, as timm's validate.py does with --use-train-size.
        unreadable: what to do with an image that cannot be read.
        json, csv: a file and a folder to write the results to.

    Returns:
        The scores of each model on each set; of a run on its own images also those of its teacher.

    Raises:
        InputError: there are no such models or images, or they do not fit together.
    """
    named, path = str(path), Path(path)  # of hf://OWNER/NAME a Path would join the slashes
    _refuse_options(data, sets, root, precision, json, csv)
    settings = Settings(batch_size, num_workers, unreadable)
    found = find_models(
        path,
        model=model,
        student=student,
        weights=weights,
        image_size=image_size,
        use_test_size=not use_train_size,
    )
    found = _classifiers(found)
    asked = _named_teacher(teacher, teacher_model, not use_train_size)
    if asked is not None:  # whose name is "teacher"
        found = [
            replace(each, name=f"{TEACHER} (model)") if each.name == TEACHER else each
            for each in found
        ]
    notes: list[str] = []
    if sets is not None:
        text = sets if isinstance(sets, str) else ",".join(sets)
        folder = None if root is None else Path(root).expanduser()
        wanted, without = measurements(named_sets(text, folder), folder)
        evaluation = SetEvaluation(wanted, found[0])
        compared, compared_logits = _in_classes_of(asked, found[0], (), notes)
        notes = [*evaluation.notes, *([without] if without else []), *notes]
        run = evaluation.run
    else:
        recipe = load_recipe(path / RECIPE_FILE) if (path / RECIPE_FILE).is_file() else None
        images = None if data is None else str(data)
        opened, order_given = open_images(images, split, classes, recipe, path)
        # The models of one run have the same classes.
        assert len({each.classes for each in found}) == 1
        source, match = labelled_in_logits(opened, order_given, found[0])
        if match.how != "names" or not match.in_order:
            notes.append(match.describe())
        compared, compared_logits = _in_classes_of(asked, found[0], source.classes, notes)
        if images is None and compared is None:
            compared, missing = run_teacher(recipe, source)
            if missing is not None:
                make_console(stderr=True).print(
                    f"without the teacher: {missing}", markup=False, soft_wrap=True
                )
        title = "evaluation images of the run, again" if images is None else title_of(images)
        run = partial(_only_set, source, match, found, images or named, title)
    engine = Engine(precision=precision)
    try:
        of_sets = run(Evaluator(found, compared, engine, settings, compared_logits))
    except InputError as error:
        raise InputError(in_command_words(str(error))) from error
    finally:
        engine.close()
    results = Results(found, {each.name: each for each in of_sets})
    if engine.is_main:
        _show(named, results, notes, compared, of_run=sets is None)
        if json is not None:
            results.write_json(Path(json))
        if csv is not None:
            results.write_csv(Path(csv))
    return results


def _refuse_options(
    data: str | Path | None,
    sets: str | Sequence[str] | None,
    root: str | Path | None,
    precision: str,
    json: str | Path | None,
    csv: str | Path | None,
) -> None:
    """Raises InputError for options that contradict each other or cannot be written to."""
    if sets is not None and data is not None:
        raise InputError("--sets and --data both name the images: leave one out")
    if root is not None and sets is None:
        raise InputError("--root is the folder of --sets: give both")
    if precision not in get_args(Precision):
        raise InputError(
            f"--precision {precision}: should be one of {', '.join(get_args(Precision))}"
        )
    if json is not None and Path(json).is_dir():
        raise InputError(f"--json {json}: is a folder: name a file")
    if csv is not None and Path(csv).exists() and not Path(csv).is_dir():
        raise InputError(f"--csv {csv}: is a file: name a folder, which gets a CSV for each set")


def _only_set(
    source: Source,
    match: Match,
    found: list[Found],
    name: str,
    title: str,
    evaluator: Evaluator,
) -> list[SetResult]:
    """Evaluate on the images of --data, or those of the run.

    Args:
        name: the path of the images, or of the run.
        title: the images in words.
    """
    answers = evaluator.answers(source)
    scores = {
        model: scores_of(predictions, answers.images_per_s[model])
        for (model, _), predictions in answers.of.items()
    }
    order = dict.fromkeys([*(each.name for each in found), TEACHER])
    in_order = {model: scores[model] for model in order if model in scores}
    return [SetResult("data", title, name, match.num_logits, "results-data", in_order)]


def _classifiers(found: list[Found]) -> list[Found]:
    """The models that have classes; of a run that has others too, the screen names these.

    Raises:
        InputError: none has.
    """
    having = [each for each in found if each.has_classes]
    without = [each.name for each in found if not each.has_classes]
    if not having:
        raise InputError(
            f"{', '.join(without)}: a backbone without classifier names no classes, and there is"
            " nothing to evaluate: train a classifier on its features, or compare it as a teacher"
            " (objective.hint with loss: feature)"
        )
    if without:
        make_console(stderr=True).print(
            f"without {', '.join(without)}: no classifier", markup=False, soft_wrap=True
        )
    return having


def _named_teacher(path: str | Path | None, model: str | None, use_test_size: bool) -> Found | None:
    """The model of --teacher.

    Raises:
        InputError: there is no such model, or there are several.
    """
    if path is None:
        if model is not None:
            raise InputError("--teacher-model names the architecture of --teacher: give both")
        return None
    try:
        found = find_model(str(path), "--teacher", model=model, use_test_size=use_test_size)
    except InputError as error:
        message = str(error).replace("give --model", "give --teacher-model")
        named = message if message.startswith("--teacher") else f"--teacher: {message}"
        raise InputError(named) from error
    if not found.has_classes:
        raise InputError(
            f"--teacher {path}: has no classifier, and models are compared by their classes: name a"
            " model with classes"
        )
    return replace(found, name=f"--teacher {path}")


def _in_classes_of(
    teacher: Found | None, student: Found, data_classes: Sequence[str], notes: list[str]
) -> tuple[Teacher | None, Sequence[int] | None]:
    """The teacher, and its logit of each class of the student.

    Args:
        data_classes: the images' classes in the order of the student's logits, if they name them.
        notes: gets how the classes were matched, if not by their names.

    Raises:
        InputError: the teacher does not know the classes.
    """
    if teacher is None:
        return None, None
    num_logits = int(teacher.net.num_classes)  # type: ignore[arg-type]
    num_classes = int(student.net.num_classes)  # type: ignore[arg-type]
    own = student.classes or (tuple(data_classes) if len(data_classes) == num_classes else ())
    own = own or named_list(space_of_size(num_classes) or "") or tuple(map(str, range(num_classes)))
    try:
        match = match_classes(teacher.classes or None, num_logits, own, who=teacher.name)
    except InputError as error:
        raise InputError(
            f"{teacher.name}: has other classes than {student.name}, called the data here: {error}"
        ) from error
    if match.how != "names":
        notes.append(match.describe())
    found = Teacher(
        teacher.net,
        teacher.view,
        num_classes=num_logits,
        source=teacher.name,
        classes=teacher.classes or None,
        notes=teacher.notes,
        promised=teacher.promise,
    )
    return found, match.logits.tolist()


def run_teacher(recipe: Recipe | None, source: Source) -> tuple[Teacher | None, str | None]:
    """The run's own teacher if it has classes, and why it is not there although the recipe names
    one.
    """
    if recipe is not None and recipe.teachers:
        return None, (
            "this run has several; it compared its students with them while it trained, and"
            " distill evaluate --teacher compares with the one that it names"
        )
    if recipe is None or recipe.teacher is None:
        return None, None
    try:
        # The run trained with this teacher, so the order of its classes was checked then.
        teacher = build_teacher(
            recipe.teacher,
            classes=source.classes,
            root=Path(),
            device="cpu",
            data_image_size=recipe.data.image_size,
            order_given=True,
        )
    except InputError as error:
        return None, str(error)
    return (teacher if teacher.has_classes else None), None


# ---- what people see -----------------------------------------------------------------------------


def _show(
    path: str, results: Results, notes: list[str], teacher: Teacher | None, *, of_run: bool
) -> None:
    console = make_console()

    def say(line: str) -> None:
        console.print(wrapped(console, line), markup=False, soft_wrap=True)

    if len(results.sets) == 1:
        samples = next(iter(next(iter(results.sets.values())).scores.values()))
        skipped = f", {samples.num_skipped} unreadable skipped" if samples.num_skipped else ""
        say(f"{path}: {samples.num_samples} images{skipped}")
    for note in notes:
        say(note)
    for of_set in results.sets.values() if len(results.sets) > 1 else ():
        if count := next(iter(of_set.scores.values())).num_skipped:
            say(f"{of_set.name}: {count} unreadable images skipped")
    show_table(console, results.table(console.width))  # first, for programs that look for it
    for line in _views(results.found, teacher):
        say(line)
    for doubt in _doubts(results, teacher, of_run):
        say(f"warning: {doubt}")


def _views(found: Sequence[Found], teacher: Teacher | None) -> list[str]:
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


def _doubts(results: Results, teacher: Teacher | None, of_run: bool) -> list[str]:
    """Warnings about an assumed image size, and about accuracies no better than chance or far below
    what a record promises.
    """
    warnings = [each.size_warning for each in results.found if each.size_warning is not None]
    for of_set in results.sets.values():
        # The images of ImageNet-A are those that a ResNet-50 gets wrong.
        if of_set.name == "a":
            continue
        where = "" if of_run else f" on {of_set.name}"
        for each in results.found:
            warnings += doubts(
                f"{each.name}{where}",
                of_set.scores[each.name].top1,
                of_set.scores[each.name].num_samples,
                of_set.num_classes,
                sees=each.view.describe(),
                # A record states the accuracy on the images of its run.
                promise=each.promise if of_run else None,
            )
        if teacher is not None and TEACHER in of_set.scores:
            score: Scores = of_set.scores[TEACHER]
            warnings += doubts(
                f"{TEACHER}{where}",
                score.top1,
                score.num_samples,
                of_set.num_classes,
                sees=teacher.view.describe(),
                promise=teacher.promised if of_run else None,
            )
    return warnings
