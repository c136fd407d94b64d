"""What an evaluation found: a table for people, JSON for programs, and CSV in timm's columns."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from distill import __version__
from distill.errors import InputError
from distill.evaluation.scores import Scores
from distill.files import replace_text, sha256_of
from distill.release.find import Found

JSON_FORMAT = 1
_COLUMNS = (
    "model",
    "img_size",
    "top1",
    "top1_err",
    "top5",
    "top5_err",
    "param_count",
    "crop_pct",
    "interpolation",
)
# Headings on a terminal narrower than this, where one that does not fit would be cut.
_ONE_LINE_WIDTH = 160
_IN_TWO_LINES = {
    "cross-entropy": "cross-\nentropy",
    "KL to teacher": "KL to\nteacher",
    "adaptive ECE %": "adaptive\nECE %",
}
_DIFFERENCES = ("top1_diff", "top5_diff", "rank_diff")


@dataclass(frozen=True)
class SetResult:
    """The scores of all models on one set.

    Attributes:
        name: as in --sets.
        title: for people.
        data: where the images are.
        num_classes: among how many the answer is looked for.
        table: the name of timm's CSV of results on this set.
        baseline: the set whose scores this one is compared with, as timm does.
        scores: model -> its scores.
    """

    name: str
    title: str
    data: str
    num_classes: int
    table: str
    scores: Mapping[str, Scores]
    baseline: str | None = None


@dataclass(frozen=True)
class Results:
    """The scores of models on one or several sets.

    Attributes:
        found: the models.
        sets: name -> its scores, in the order in which they were asked for.
    """

    found: Sequence[Found] = field(repr=False)  # a notebook would show every layer
    sets: Mapping[str, SetResult]

    @property
    def scores(self) -> Mapping[str, Scores]:
        """Model -> its scores, where there is one set."""
        if len(self.sets) != 1:
            raise InputError(f"several sets: use .sets[NAME].scores of {', '.join(self.sets)}")
        return next(iter(self.sets.values())).scores

    def __getitem__(self, model: str) -> Scores:
        """The scores of a model, where there is one set."""
        return self.scores[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def table(self, width: int) -> Table:
        """Return a row for each set and model."""
        several_sets = len(self.sets) > 1
        every = [score for each in self.sets.values() for score in each.scores.values()]
        compared = any(score.agreement is not None for score in every)
        headings = ["set"] if several_sets else []
        headings += ["", "weights"] if not several_sets else [""]
        headings += ["images"] if several_sets else []
        headings += ["top-1 %", "±", "top-5 %", "cross-entropy", "ECE %"]
        headings += ["agrees %", "KL to teacher"] if compared else []
        wide = width >= 100
        headings += ["adaptive ECE %", "images/s"] if wide else []
        table = Table(box=None, pad_edge=False)
        for heading in headings:
            left = heading in ("", "set", "weights")
            shown = heading if width >= _ONE_LINE_WIDTH else _IN_TWO_LINES.get(heading, heading)
            table.add_column(shown, justify="left" if left else "right", overflow="fold")
        weights = {each.name: str(each.record.get("weights", "")) for each in self.found}
        for each in self.sets.values():
            for name, score in each.scores.items():
                row = [each.name] if several_sets else []
                row += [name] if several_sets else [name, weights.get(name, "")]
                row += [str(score.num_samples)] if several_sets else []
                row += [f"{score.top1:.2f}", f"{score.top1_error:.2f}", f"{score.top5:.2f}"]
                row += [_shown(score.loss, ".4f"), f"{100 * score.ece:.2f}"]
                if compared:
                    row += [_shown(score.agreement, ".2f"), _shown(score.teacher_kl, ".4f")]
                if wide:
                    row += [f"{100 * score.adaptive_ece:.2f}", _shown(score.images_per_s, ".1f")]
                table.add_row(*row)
        return table

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it. Figures that are not finite are None."""
        return {
            "format": JSON_FORMAT,
            "version": __version__,
            "models": {each.name: described(each) for each in self.found},
            "sets": {
                each.name: {
                    "title": each.title,
                    "data": each.data,
                    "num_classes": each.num_classes,
                    "models": {
                        name: {
                            key: value if math.isfinite(value) else None
                            for key, value in score.as_dict().items()
                        }
                        for name, score in each.scores.items()
                    },
                }
                for each in self.sets.values()
            },
        }

    def write_json(self, file: Path) -> None:
        """Write `as_dict` to a file, atomically."""
        _write(file, json.dumps(self.as_dict(), indent=1) + "\n", "--json")

    def write_csv(self, folder: Path) -> list[Path]:
        """Write a CSV for each set into a folder, in the columns and under the names of timm's
        tables of results: rows can be pasted into them. `rank_diff` counts among these models.
        """
        files = []
        for each in self.sets.values():
            file = folder / f"{each.table}.csv"
            _write(file, self.csv_of(each), "--csv")
            files.append(file)
        return files

    def csv_of(self, of: SetResult) -> str:
        """Return timm's CSV for one set."""
        baseline = None if of.baseline is None else self.sets.get(of.baseline)
        text = io.StringIO()
        columns = [*_COLUMNS, *(_DIFFERENCES if baseline else ())]
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(columns)
        models = {each.name: each for each in self.found}  # without the teacher
        ranked = _ranked(of.scores, models)
        for name in ranked:
            model, score = models[name], of.scores[name]
            row = [
                name,
                model.view.image_size,
                f"{score.top1:.3f}",
                f"{100 - score.top1:.3f}",
                f"{score.top5:.3f}",
                f"{100 - score.top5:.3f}",
                f"{_parameters(model) / 1e6:,.2f}",
                f"{model.view.crop_fraction:.3f}",
                model.view.interpolation,
            ]
            if baseline is not None:
                before = baseline.scores[name]
                rank = _ranked(baseline.scores, models).index(name) - ranked.index(name)
                row += [
                    f"{score.top1 - before.top1:+.3f}",
                    f"{score.top5 - before.top5:+.3f}",
                    f"{rank:+d}" if rank else "0",
                ]
            rows.writerow(row)
        return text.getvalue()


def _ranked(scores: Mapping[str, Scores], names: Iterable[str]) -> list[str]:
    """Names by top-1 and top-5, the best first, as timm sorts its tables."""
    return sorted(names, key=lambda name: (-scores[name].top1, -scores[name].top5, name))


def _shown(value: float | None, pattern: str) -> str:
    return "" if value is None else format(value, pattern)


def _parameters(found: Found) -> int:
    return sum(parameter.numel() for parameter in found.net.parameters())


def described(found: Found) -> dict[str, Any]:
    """Return what a model is, as JSON takes it."""
    return {
        "model": str(found.record.get("model", found.name)),
        "weights": str(found.record.get("weights", "")),
        "sha256": None if found.file is None else sha256_of(found.file),
        "parameters": _parameters(found),
        "image_size": found.view.image_size,
        "crop_fraction": found.view.crop_fraction,
        "crop_mode": found.view.crop_mode,
        "interpolation": found.view.interpolation,
    }


def _write(file: Path, text: str, option: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, text)
    except OSError as error:
        raise InputError(f"{option} {file}: cannot be written: {error}") from error
