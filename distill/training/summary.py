"""The end of a run: report.json for programs, a table for people."""

import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distill import __version__
from distill.checkpoint.layout import REPORT_FILE
from distill.console import hours_minutes, show_table
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER, Accuracy
from distill.evaluation.metric import Metric
from distill.files import replace_text
from distill.models.view import ModelView
from distill.recipe.teachers import is_teacher
from distill.student.student import Student
from distill.training.plan import StagePlan

_LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "datasets", "deepspeed")
TEACHER_COLUMNS = ("agrees %", "KL to teacher")
_WIDE = 110  # columns of the table with the names of larger models


@dataclass(frozen=True)
class Summary:
    """The result of a run. `device_hours` is wall time times processes, over all its sessions: GPU
    hours on GPUs. `energy_j` is what its GPUs used; None if it was not measured.
    """

    run: str
    output: Path
    steps: int
    epochs: float
    seconds: float
    device_hours: float
    energy_j: float | None
    num_processes: int
    device: str
    num_skipped: int
    stages: Sequence[StagePlan]  # empty for a run without stages
    stage_ends: Mapping[str, Mapping[str, Any]]  # by stage, by model: the accuracy at its end
    students: Sequence[Student]
    accuracies: Mapping[str, Accuracy]
    metric: Metric  # by which the best weights are chosen
    views: Mapping[str, ModelView]  # what the teacher and each student see
    origins: Mapping[str, Mapping[str, str]]  # where the weights of teacher and students are from
    data: Mapping[str, Any]  # where the images are, and how many
    throughput: Mapping[str, float]
    warnings: Sequence[str]

    @property
    def best(self) -> str | None:
        """The student with the best value of the metric; the first one if nothing was evaluated."""
        found = {s.name: s.best.value for s in self.students if s.best is not None}
        return self.metric.best_of(found) or next(iter(found), None)

    def as_dict(self) -> dict[str, Any]:
        """The report, JSON-able."""
        students = {}
        for student in self.students:
            own = {
                n: a.as_dict()
                for n, a in self.accuracies.items()
                if n.partition("/")[0] == student.name
            }
            students[student.name] = {
                "model": student.spec.model,
                "parameters": student.num_parameters,
                "parameters_of_heads": student.num_head_parameters,
                "objective": student.spec.objective.model_dump(mode="json"),
                "stopped_at": student.stopped_at,
                "best": student.best.as_dict() if student.best else None,
                "last": own.pop(student.name, None),
                "averages": {name.partition("/")[2]: values for name, values in own.items()},
            }
        teacher = self.accuracies.get(TEACHER)
        several = {
            name: each.as_dict()
            for name, each in self.accuracies.items()
            if is_teacher(name) and name != TEACHER
        }
        return {
            "run": self.run,
            "best": self.best,
            "steps": self.steps,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 3),
            "device_hours": round(self.device_hours, 5),
            "energy_j": None if self.energy_j is None else round(self.energy_j, 3),
            "num_processes": self.num_processes,
            "device": self.device,
            "num_skipped": self.num_skipped,
            "throughput": dict(self.throughput),
            "data": dict(self.data),
            "teacher": teacher.as_dict() if teacher else None,
            **({"teachers": several} if several else {}),
            "origins": {name: dict(origin) for name, origin in self.origins.items()},
            "views": {name: view.as_dict() for name, view in self.views.items()},
            "stages": [self._stage(stage) for stage in self.stages],
            "students": students,
            "warnings": list(self.warnings),
            "version": __version__,
            "versions": versions(),
        }

    def _stage(self, stage: StagePlan) -> dict[str, Any]:
        return {
            "name": stage.name,
            "first_step": stage.first_step,
            "last_step": stage.last_step,
            "epochs": (stage.last_step - stage.first_step) / stage.order.steps_per_epoch,
            "training_images": stage.order.num_samples,
            "labels_read": stage.labelled,
            "models": dict(self.stage_ends[stage.name]) if stage.name in self.stage_ends else None,
        }

    def write(self, again: bool) -> None:
        """Write report.json into the run's folder.

        Args:
            again: the run was complete before; if it has a report, this one is not written.
        """
        with suppress(OSError, ValueError):  # no report, or an incomplete one
            if again and json.loads((self.output / REPORT_FILE).read_text()):
                return
        try:
            replace_text(self.output / REPORT_FILE, json.dumps(self.as_dict(), indent=1) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.output / REPORT_FILE}: cannot be written: {error}; free some space"
                " and run again"
            ) from error

    def show(self, console: Console) -> None:
        """Print the run in a line, and its table."""
        console.print(self.headline(), markup=False, soft_wrap=not console.is_terminal)
        for line in self.stage_lines():
            console.print(line, markup=False, soft_wrap=not console.is_terminal)
        show_table(console, self.table(narrow=console.width < _WIDE))
        for line in self.next_commands():
            console.print(line, markup=False, soft_wrap=True)

    def table(self, narrow: bool = False) -> Table:
        """A row for each teacher and each student, its averages below it; `narrow` leaves out
        columns that repeat the recipe.
        """
        table = Table(box=None, pad_edge=False)
        table.add_column("", overflow="fold")
        table.add_column("model", overflow="fold")
        if not narrow:
            table.add_column("parameters", justify="right")
            table.add_column("learns from")
        teachers = [name for name in self.accuracies if is_teacher(name)]
        with_teacher = bool(teachers)
        versus = ("agrees %", "KL") if narrow else TEACHER_COLUMNS
        for heading in (
            "top-1 %",
            "top-5 %",
            self.metric.best_label,
            *(versus if with_teacher else ()),
        ):
            table.add_column(heading, justify="right")
        num_descriptions = 1 if narrow else 3
        blank = [""] * num_descriptions
        for name in teachers:
            table.add_row(name, *blank, *_scores(self.accuracies[name], "", True), style="dim")
        for student in self.students:
            millions = student.num_parameters / 1e6
            what = [student.spec.model, f"{millions:.2f} M", student.spec.objective.in_words][
                :num_descriptions
            ]
            if not student.running:
                what[-1] = f"stopped at step {student.stopped_at}"
            value = student.best.value if student.best else None
            best = "" if value is None else format(value, self.metric.pattern)
            table.add_row(
                student.name, *what, *_scores(self.accuracies.get(student.name), best, with_teacher)
            )
            for key in student.averages:
                table.add_row(
                    f"  {key}",
                    *blank,
                    *_scores(self.accuracies.get(f"{student.name}/{key}"), "", with_teacher),
                )
        return table

    def headline(self) -> str:
        """The run in a line: steps, time, the best student."""
        skipped = f", {self.num_skipped} unreadable images skipped" if self.num_skipped else ""
        best = f"; best: {self.best}" if self.best else ""
        # Epochs of different data do not add up.
        epochs = "" if self.stages else f" ({self.epochs:.1f} epochs)"
        return (
            f"{self.run}: {self.steps} steps{epochs} in {hours_minutes(self.seconds)} on"
            f" {self.num_processes} x {self.device} ({self.device_hours:.2f} device"
            f" hours){skipped}{best}, in {self.output}"
        )

    def next_commands(self) -> list[str]:
        """Commands to use the run with, and the path of its report."""
        output = shlex.quote(str(self.output))
        commands = []
        if self.best is not None:
            target = (
                Path("exports", *self.output.parts[1:]) if self.output.parts[0] == "runs" else None
            )
            labelled = any(each.top1 is not None for each in self.accuracies.values())
            data = "" if labelled else " --data FOLDER"
            has_classifier = not all(student.is_backbone for student in self.students)
            commands = [
                *([f"  distill evaluate {output}{data}"] if has_classifier else []),
                (
                    f"  distill export {output}"
                    f" {shlex.quote(str(target or Path('exports', self.output.name)))}"
                ),
            ]
        return [*(["next:"] if commands else []), *commands, f"report: {self.output / REPORT_FILE}"]

    def stage_lines(self) -> list[str]:
        """A line a stage: its steps, and the top-1 of the students at its end."""
        lines = []
        for stage in self.stages:
            accuracies = self.stage_ends.get(stage.name, {})
            scores = ", ".join(
                f"{name} {values['top1']:.2f}"
                for name, values in accuracies.items()
                if "/" not in name and "top1" in values
            )
            epochs = (stage.last_step - stage.first_step) / stage.order.steps_per_epoch
            lines.append(
                f"  stage {stage.name}: {stage.last_step - stage.first_step} steps ({epochs:.1f}"
                f" epochs of {stage.order.num_samples:,} images)"
                + (f"; top-1 % at its end: {scores}" if scores else "")
            )
        return lines


def versions() -> dict[str, str]:
    """The versions of Python, libraries and this package, and its commit in a checkout."""
    found = {"python": platform.python_version(), "distill": __version__}
    for library in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():  # git itself would also look in the folders above
        with suppress(OSError, subprocess.SubprocessError):
            command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
            found["commit"] = subprocess.run(
                command, cwd=checkout, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
    return found


def _scores(accuracy: Accuracy | None, best: str, with_teacher: bool) -> list[str]:
    def show(value: float | None, pattern: str) -> str:
        return "" if value is None else format(value, pattern)

    if accuracy is None:
        return ["", "", best, *([""] * len(TEACHER_COLUMNS) if with_teacher else [])]
    scores = [show(accuracy.top1, ".2f"), show(accuracy.top5, ".2f"), best]
    versus = [show(accuracy.agreement, ".2f"), show(accuracy.teacher_kl, ".4f")]
    return scores + (versus if with_teacher else [])
