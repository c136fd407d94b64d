"""The figure by which a run chooses its best weights, and which of two values is better."""

from collections.abc import Mapping
from dataclasses import dataclass

from distill.evaluation.accuracy import Accuracy


@dataclass(frozen=True)
class Metric:
    """One of the figures of an evaluation.

    Attributes:
        name: the attribute of `Accuracy`, and the key in records.
        best_label: the heading of a column with the best value so far.
        pattern: the format of its values.
    """

    name: str
    best_label: str
    pattern: str
    higher_is_better: bool

    def of(self, accuracy: Accuracy) -> float | None:
        """Return its value in an evaluation; None if it needs a teacher and there is none."""
        value: float | None = getattr(accuracy, self.name)
        return value

    def better(self, value: float, before: float | None) -> bool:
        """Return whether a value is better than the best one before; None for none before."""
        if before is None:
            return True
        return value > before if self.higher_is_better else value < before

    def best_of(self, values: Mapping[str, float | None]) -> str | None:
        """Return the name of the best value, of equal ones the first; None if there is none."""
        best: str | None = None
        for name, value in values.items():
            if value is not None and self.better(value, None if best is None else values[best]):
                best = name
        return best


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", "best %", ".2f", higher_is_better=True),
        Metric("top5", "best top-5 %", ".2f", higher_is_better=True),
        Metric("loss", "best loss", ".4f", higher_is_better=False),
        Metric("agreement", "best agrees %", ".2f", higher_is_better=True),
        Metric("teacher_kl", "best KL", ".4f", higher_is_better=False),
    )
}
"""By name, as evaluate.metric of a recipe."""
