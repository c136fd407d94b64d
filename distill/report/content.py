"""Everything that a report says, as data that the templates of HTML and Markdown both read."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from distill import __version__
from distill.errors import InputError
from distill.evaluation.metric import Metric
from distill.evaluation.predictions import Predictions
from distill.report import facts, words
from distill.report.classes import (
    Agreement,
    ClassGain,
    ClassScore,
    Matrix,
    agreement,
    class_gains,
    confusion_matrix,
    worst_classes,
)
from distill.report.comparison import Difference, differences
from distill.report.curves import CurveSource, Panel, panels
from distill.report.predictions import Evaluated, predict_run
from distill.report.records import RunRecords
from distill.report.results import (
    ResultRow,
    best_student,
    metric_of,
    objectives,
    result_rows,
)
from distill.report.thumbnails import Differing, differing
from distill.study.render import Rendered

_WORST = 8  # classes in lists and in the matrix of many classes
_MATRIX_OF_ALL = 12  # up to so many classes the matrix has all of them
_GAINS_SHOWN = 20  # bars; of more classes the best and worst half each
_STUDENTS_SHOWN = 8  # in detail


@dataclass(frozen=True)
class RunContent:
    """A run in a report.

    Attributes:
        label: its name, or its folder where several runs have one name.
        metric: by which its best weights were chosen.
        best: the student with the best value of it.
    """

    label: str
    folder: str
    description: str
    finished: bool
    status: str
    metric: Metric
    best: str | None
    rows: Sequence[ResultRow]
    trained: facts.Facts
    costs: facts.Facts
    versions: facts.Facts
    warnings: Sequence[str]
    recipe_text: str


@dataclass(frozen=True)
class StudentDetail:
    """What the predictions of a student show.

    Attributes:
        weights: which weights of the student these are.
        right: percent of the images.
        matrix_of_all: the matrix has all classes.
        alone: the student that learned alone, whose classes `gains` compares with; None if there is
            none, or for that student itself.
        gains: of every class, the largest first.
        gains_shown: those that are drawn.
        images: on which student and teacher differ; without a teacher those the student gets wrong.
    """

    name: str
    weights: str
    num_images: int
    right: float
    agreement: Agreement | None
    matrix: Matrix | None
    matrix_of_all: bool
    worst: Sequence[ClassScore]
    alone: str | None
    gains: Sequence[ClassGain]
    gains_shown: Sequence[ClassGain]
    images: Sequence[Differing]


@dataclass(frozen=True)
class Content:
    """A report of one or several runs.

    Attributes:
        studies: the tables of studies.
        details: of the students of a single run, the best first.
        details_notes: why there are no details, or fewer, a sentence each.
    """

    title: str
    written: str
    version: str
    runs: Sequence[RunContent]
    panels: Sequence[Panel]
    curves_note: str
    differences: Sequence[Difference]
    studies: Sequence[Rendered] = ()
    details: Sequence[StudentDetail] = ()
    details_notes: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    """What a user asks of a report.

    Attributes:
        students: the only ones to show; empty for all.
        predictions: evaluate the best weights once more, for what classes and images show.
        images: show images.
        batch_size: images in a batch of that evaluation.
        num_workers: decoding processes of it; None: the CPU cores.
        say: prints a line of progress.
    """

    students: Sequence[str] = ()
    predictions: bool = True
    images: bool = True
    batch_size: int = 256
    num_workers: int | None = None
    say: Callable[[str], None] = field(default=lambda line: None)


def make_content(
    runs: Sequence[RunRecords], options: Options, studies: Sequence[Rendered] = ()
) -> Content:
    """Return the content of a report.

    Args:
        studies: the tables of studies among whose runs these are.

    Raises:
        InputError: no run has a student that the options name.
    """
    labels = run_labels(runs)
    shown = [_shown_students(run, options.students) for run in runs]
    if not any(shown):
        known = dict.fromkeys(name for run in runs for name in run.recipe.students)
        raise InputError(
            f"--student {', '.join(options.students)}: there is no such student; there are"
            f" {', '.join(known)}"
        )
    several = len(runs) > 1
    sources = [
        CurveSource(run, students, f"{label}: " if several else "", i if several else None)
        for i, (run, students, label) in enumerate(zip(runs, shown, labels, strict=True))
    ]
    drawn = panels(sources)
    content = Content(
        title=_title(labels, studies),
        written=words.date(time.time()),
        version=__version__,
        runs=[
            _run_content(run, students, label)
            for run, students, label in zip(runs, shown, labels, strict=True)
        ],
        panels=drawn,
        curves_note=_curves_note(drawn),
        differences=differences(runs) if several else (),
        studies=studies,
    )
    if several or not options.predictions:
        return content
    return _with_details(content, runs[0], shown[0], options)


def _title(labels: Sequence[str], studies: Sequence[Rendered]) -> str:
    if studies:
        return ", ".join(study.title for study in studies)
    return ", ".join(labels) if len(labels) <= 3 else f"{len(labels)} runs"


def run_labels(runs: Sequence[RunRecords]) -> list[str]:
    """Return the name of each run, or the folders if names are not distinct."""
    names = [run.recipe.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _shown_students(run: RunRecords, wanted: Sequence[str]) -> list[str]:
    return [name for name in run.recipe.students if not wanted or name in wanted]


def _run_content(run: RunRecords, students: Sequence[str], label: str) -> RunContent:
    return RunContent(
        label=label,
        folder=str(run.folder),
        description=run.recipe.description,
        finished=run.finished,
        status=facts.status(run),
        metric=metric_of(run),
        best=best_student(run, students),
        rows=result_rows(run, students),
        trained=facts.what_was_trained(run),
        costs=facts.costs(run),
        versions=facts.versions(run),
        warnings=facts.warnings(run),
        recipe_text=run.recipe_text,
    )


def _curves_note(drawn: Sequence[Panel]) -> str:
    notes = []
    if any(panel.averaged for panel in drawn):
        notes.append("Curves of many entries show means of neighbouring entries.")
    if not any(panel.title.startswith("Gradient norm") for panel in drawn):
        notes.append("Gradient norms were not recorded: log.gradient_norms: true records them.")
    return " ".join(notes)


def _with_details(
    content: Content, run: RunRecords, students: Sequence[str], options: Options
) -> Content:
    """Add what the predictions show, or say why they are missing."""
    best = content.runs[0].best
    in_order = sorted(students, key=lambda name: name != best)
    options.say(f"evaluating the best weights of {', '.join(in_order)}")
    alone = _alone(run)
    needed = [*in_order, *([alone] if alone is not None and alone not in in_order else [])]
    try:
        evaluated = predict_run(
            run, needed, batch_size=options.batch_size, num_workers=options.num_workers
        )
    except InputError as error:
        note = f"Classes and images are left out; of this run distill evaluate says: {error}"
        options.say(note)
        return replace(content, details_notes=[note])
    for note in evaluated.notes:
        options.say(note)
    names = [name for name in in_order if name in evaluated.students]
    notes = list(evaluated.notes)
    if len(names) > _STUDENTS_SHOWN:
        notes.append(f"The first {_STUDENTS_SHOWN} students are shown; --student chooses others.")
    details = [_detail(name, evaluated, alone, options.images) for name in names[:_STUDENTS_SHOWN]]
    return replace(content, details=details, details_notes=notes)


def _alone(run: RunRecords) -> str | None:
    """Return the first student that learns from no teacher; None if all or none do."""
    own = {
        name: any(objective.teacher_terms for objective in objectives(run, name))
        for name in run.recipe.students
    }
    if not any(own.values()):
        return None
    return next((name for name, has_teacher in own.items() if not has_teacher), None)


def _detail(name: str, evaluated: Evaluated, alone: str | None, with_images: bool) -> StudentDetail:
    student, teacher = evaluated.students[name], evaluated.teacher
    classes = evaluated.classes
    other: Predictions | None = None
    if alone is not None and alone != name:
        other = evaluated.students.get(alone)
    gains = class_gains(student, other, classes) if other is not None else []
    half = _GAINS_SHOWN // 2
    few = len(classes) <= _MATRIX_OF_ALL
    return StudentDetail(
        name=name,
        weights=evaluated.weights[name],
        num_images=len(student.labels),
        right=100 * float(student.right.mean()),
        agreement=None if teacher is None else agreement(student, teacher),
        matrix=confusion_matrix(student, classes, _MATRIX_OF_ALL if few else _WORST),
        matrix_of_all=few,
        worst=worst_classes(student, teacher, classes, _WORST),
        alone=alone if other is not None else None,
        gains=gains,
        gains_shown=gains if len(gains) <= _GAINS_SHOWN else [*gains[:half], *gains[-half:]],
        images=differing(evaluated.source, student, teacher, classes) if with_images else (),
    )
