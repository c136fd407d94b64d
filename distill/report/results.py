"""The final table of a run: from report.json, or from the last evaluations of an unfinished run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from distill.evaluation.accuracy import TEACHER
from distill.evaluation.metric import METRICS, Metric
from distill.models.export_format import RAW
from distill.recipe import schema
from distill.report.records import RunRecords, number
from distill.report.words import NOT_RECORDED, recorded
from distill.training.result_file import StudentResult


@dataclass(frozen=True)
class Scores:
    """The figures of an evaluation, as `Accuracy`; what is not known is None."""

    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    agreement: float | None = None
    teacher_kl: float | None = None


@dataclass(frozen=True)
class ResultRow:
    """A model in the final table; what is not known is None.

    Attributes:
        student: its student's name; None for the teacher.
        average: the name of a weight average, such as "ema-0.999"; None for the raw weights.
        learns_from: the terms of its objective with their weights.
        scores: at the last evaluation.
        best: the best value of the run's metric, of a student's own row.
        best_of: the step and weights of that value, in words.
    """

    name: str
    student: str | None
    average: str | None = None
    model: str = ""
    parameters: int | None = None
    learns_from: str = ""
    scores: Scores = Scores()
    best: float | None = None
    best_of: str = ""
    stopped_at: int | None = None


def metric_of(run: RunRecords) -> Metric:
    """Return the metric by which a run chooses its best weights."""
    return METRICS[run.recipe.evaluate.metric]


def result_rows(run: RunRecords, students: Sequence[str]) -> list[ResultRow]:
    """Return a row for each teacher, and for each student and each of its averages."""
    last = _last_figures(run)
    rows = [
        ResultRow(row, None, model=spec.model or "", scores=_scores(last[row]))
        for row, spec in run.recipe.teacher_rows.items()
        if row in last
    ]
    for name in students:
        rows += _student_rows(run, name, last)
    return rows


def best_student(run: RunRecords, students: Sequence[str]) -> str | None:
    """Return the student with the best value of the run's metric; None if nothing was evaluated."""
    values = {name: value for name in students if (value := _best(run, name)[0]) is not None}
    return metric_of(run).best_of(values)


def objectives(run: RunRecords, student: str) -> list[schema.ObjectiveSpec]:
    """Return the objective of a student in each stage."""
    recipe = run.recipe
    return [recipe.at_stage(i).students[student].objective for i in range(recipe.num_stages)]


def _student_rows(
    run: RunRecords, name: str, last: Mapping[str, Mapping[str, Any]]
) -> Iterator[ResultRow]:
    reported = _reported(run, name)
    best, best_of = _best(run, name)
    words = dict.fromkeys(each.in_words for each in objectives(run, name))
    yield ResultRow(
        name,
        name,
        model=run.recipe.students[name].model,
        parameters=reported.parameters,
        learns_from=", then ".join(words),
        best=best,
        best_of=best_of,
        stopped_at=reported.stopped_at or run.stopped.get(name),
        scores=_scores(last.get(name, {})),
    )
    for key, figures in last.items():
        student, _, average = key.partition("/")
        if student == name and average:
            yield ResultRow(key, name, average=average, scores=_scores(figures))


def _last_figures(run: RunRecords) -> dict[str, Mapping[str, Any]]:
    """Return the figures of each model at its last evaluation, by name."""
    found: dict[str, Mapping[str, Any]] = {}
    if run.result is None:
        for record in run.evaluated:
            found |= record["models"]
        return found
    if run.result.teacher:
        found[TEACHER] = run.result.teacher
    for name, figures in (run.result.teachers or {}).items():
        if isinstance(figures, Mapping):
            found[name] = figures
    for name in run.result.students:
        student = _reported(run, name)
        if student.last:
            found[name] = student.last
        found |= {f"{name}/{key}": figures for key, figures in student.averages.items()}
    return found


def _reported(run: RunRecords, name: str) -> StudentResult:
    """Return what report.json says of a student; nothing where it does not name it."""
    students = run.result.students if run.result is not None else {}
    return students.get(name) or StudentResult()


def _best(run: RunRecords, name: str) -> tuple[float | None, str]:
    """Return a student's best value of the metric, and in words when and which weights."""
    metric = metric_of(run)
    if run.result is not None:
        best = _reported(run, name).best
        if not best:
            return None, ""
        weights, step = best.get("weights"), number(best, "step")
        return number(best, metric.name), (
            f"{weights if isinstance(weights, str) else f'weights {NOT_RECORDED}'},"
            f" step {recorded(step, lambda found: f'{found:,.0f}')}"
        )
    value: float | None = None
    words = ""
    for record in run.evaluated:
        for key, figures in record["models"].items():
            student, _, average = key.partition("/")
            new = number(figures, metric.name)
            if student == name and new is not None and metric.better(new, value):
                value, words = new, f"{average or RAW}, step {record['step']:,}"
    return value, words


def _scores(figures: Mapping[str, Any]) -> Scores:
    return Scores(*(number(figures, each.name) for each in fields(Scores)))
