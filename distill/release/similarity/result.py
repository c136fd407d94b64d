"""What `distill similarity` found: JSON and CSV for programs, a table for people."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from distill import __version__
from distill.errors import printable
from distill.models.layers import Layer

JSON_FORMAT = 1
Values = Sequence[Sequence[float | None]]
"""CKA of each layer of A (rows) with each layer of B (columns); None is not measurable."""


@dataclass(frozen=True)
class ComparedModel:
    """A model and the layers of it that are compared.

    Attributes:
        label: its name among the compared models.
        record: which weights and view it has, as `described` returns it.
    """

    label: str
    layers: tuple[Layer, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two models and the CKA of their layers."""

    a: ComparedModel
    b: ComparedModel
    cka: Values

    def most_similar(self, row: int) -> tuple[Layer, float] | None:
        """Return the layer of B that is most similar to a layer of A, and their CKA; None if A's
        layer is not measurable.
        """
        known = [
            (value, layer)
            for value, layer in zip(self.cka[row], self.b.layers, strict=True)
            if value is not None
        ]
        if not known:
            return None
        value, layer = max(known, key=lambda each: each[0])
        return layer, value


@dataclass(frozen=True)
class Similarity:
    """The CKA of the layers of one model with those of others.

    Attributes:
        pairs: of A with each B.
        data: where the images are.
        num_images: images that count; batch_size: in a minibatch.
        num_left_out: images in minibatches with fewer than 4; num_skipped: unreadable images.
        seed: of the order of the images.
    """

    pairs: tuple[Pair, ...]
    data: str
    num_images: int
    num_left_out: int
    num_skipped: int
    batch_size: int
    seed: int
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        models = [self.pairs[0].a, *(pair.b for pair in self.pairs)]
        return {
            "format": JSON_FORMAT,
            "version": __version__,
            "measure": "unbiased minibatch CKA (arXiv 2010.15327, Eq. 3)",
            "data": self.data,
            "num_images": self.num_images,
            "num_left_out": self.num_left_out,
            "num_skipped": self.num_skipped,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "precision": self.precision,
            "models": {
                model.label: {
                    **model.record,
                    "layers": [
                        {"index": layer.index, "name": layer.name, "shape": list(layer.shape)}
                        for layer in model.layers
                    ],
                }
                for model in models
            },
            "pairs": [
                {"a": pair.a.label, "b": pair.b.label, "cka": [list(row) for row in pair.cka]}
                for pair in self.pairs
            ],
        }

    def as_csv(self) -> str:
        """Return a row for each pair of layers; the value of one that is not measurable is
        empty.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["a", "index_a", "layer_a", "b", "index_b", "layer_b", "cka"])
        for pair in self.pairs:
            for one, values in zip(pair.a.layers, pair.cka, strict=True):
                for other, value in zip(pair.b.layers, values, strict=True):
                    rows.writerow(
                        [
                            *(printable(pair.a.label), one.index, one.name),
                            *(printable(pair.b.label), other.index, other.name),
                            "" if value is None else repr(value),
                        ]
                    )
        return text.getvalue()

    def table(self) -> Table:
        """Return for each layer of A the most similar layer of each B."""
        table = Table(box=None, pad_edge=False)
        table.add_column("", justify="right")
        table.add_column(f"layer of {self.pairs[0].a.label}")
        for pair in self.pairs:
            table.add_column(f"most similar of {pair.b.label}")
            table.add_column("CKA", justify="right")
        for row, layer in enumerate(self.pairs[0].a.layers):
            cells = [str(layer.index), layer.name]
            for pair in self.pairs:
                found = pair.most_similar(row)
                if found is None:
                    cells += ["not measurable", ""]
                else:
                    cells += [f"{found[0].index} {found[0].name}", f"{found[1]:.3f}"]
            table.add_row(*cells)
        return table

    @property
    def not_measurable(self) -> list[str]:
        """The layers without a value, each with its model."""
        names = [
            f"{layer.name} of {pair.a.label}"
            for pair in self.pairs[:1]
            for layer, values in zip(pair.a.layers, pair.cka, strict=True)
            if all(value is None for value in values)
        ]
        names += [
            f"{layer.name} of {pair.b.label}"
            for pair in self.pairs
            for column, layer in enumerate(pair.b.layers)
            if all(values[column] is None for values in pair.cka)
        ]
        return list(dict.fromkeys(names))
