"""A hint outside of a run, to be counted: its heads on the CPU, and the features that it reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.losses.bank import bank_bytes
from distill.losses.build_hint import hint_term
from distill.losses.crd import CRD
from distill.losses.hint import Heads, Samples
from distill.losses.outputs import POOLED, FeatureKey
from distill.recipe import schema
from distill.rng import seeded
from distill.training.hints import FeatureSource, read_features

Shape = tuple[int, int, int]
"""Channels, height and width of a feature of an image, as the model gives it."""


@dataclass(frozen=True)
class UnplacedHint:
    """The heads of a hint, with the shapes of the features that they read.

    Attributes:
        relates: the loss relates all samples of a micro-batch to each other.
    """

    heads: Heads
    student: Sequence[Shape]
    teacher: dict[FeatureKey, Shape]
    relates: bool

    def empty_bank(self) -> None:
        """Replace CRD's bank by tensors without values, in the context of fake tensors."""
        if isinstance(self.heads, CRD):
            bank = self.heads.bank
            bank.student, bank.teacher, bank.labels = (
                torch.empty(each.shape, dtype=each.dtype)
                for each in (bank.student, bank.teacher, bank.labels)
            )

    def loss(self, made: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """Return the loss.

        Args:
            made: what the heads returned for a micro-batch.
            teacher: its features.
        """
        num_images = len(teacher[0])
        batch: Any = SimpleNamespace(
            labels=torch.empty(num_images, dtype=torch.int64),
            step=0,
            epoch=1,  # after a warm-up
            indices=np.zeros(num_images, dtype=np.int64),
        )
        return self.heads.loss(made, teacher, batch)


def unplaced_hint(
    spec: schema.HintSpec, student: FeatureSource, teacher: FeatureSource, key: str
) -> UnplacedHint | None:
    """Return the heads of a hint for two models, which may be on the device "meta".

    Args:
        key: of the hint in the recipe, for messages.

    Returns:
        None if one of the models cannot compute there.

    Raises:
        InputError: as `read_features`.
    """
    ours = read_features(spec, student, "student", key)
    theirs = read_features(spec, teacher, "teacher", key)
    if ours is None or theirs is None:
        return None
    term = hint_term(spec, (ours, theirs), None, _samples(spec))
    with seeded(0):
        heads = term.build_heads()
    return UnplacedHint(
        heads,
        [_shape(student, each) for each in term.student_features],
        {each: _shape(teacher, each) for each in term.teacher_features},
        isinstance(spec, schema.CCSpec | schema.RKDSpec),
    )


def size_of_bank(spec: schema.HintSpec, num_images: int | None) -> int:
    """Return the bytes of a hint's bank; 0 without one, and if the number of images is unknown."""
    return bank_bytes(num_images or 0, spec.width) if isinstance(spec, schema.CRDSpec) else 0


def _shape(source: FeatureSource, key: FeatureKey) -> Shape:
    found = source.pooled() if key == POOLED else source.maps[key.stage]
    return found.channels, found.height, found.width


def _samples(spec: schema.HintSpec) -> Samples:
    """Return a training set that is just large enough: what a step reads of a bank does not depend
    on its size.
    """
    return Samples(
        seed=0,
        count=spec.negatives if isinstance(spec, schema.CRDSpec) else 1,
        rows_of=lambda indices: indices,
        key=None,
        labelled=True,
        device=torch.device("cpu"),
        num_processes=1,
    )
