"""Cross-entropy and binary cross-entropy on mixed labels: definition, timm's numbers, smoothing."""

import pytest
import torch
from losses_cases import CASES, Case, assert_equals_reference, distributions, logits
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor

from distill.losses.hard import binary_cross_entropy, cross_entropy, smooth


def ce_by_definition(z: Tensor, label_probs: Tensor) -> Tensor:
    p = (z - z.amax(-1, keepdim=True)).exp()
    return -(label_probs * (p / p.sum(-1, keepdim=True)).log()).sum() / len(z)


def bce_by_definition(
    z: Tensor, label_probs: Tensor
) -> Tensor:  # summed over classes; 1 - sigmoid(z) = sigmoid(-z)
    yes, no = 1 / (1 + (-z).exp()), 1 / (1 + z.exp())
    return -(label_probs * yes.log() + (1 - label_probs) * no.log()).sum() / len(z)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_their_definitions(case: Case) -> None:
    student, _ = logits(case)
    label_probs = distributions(case.num_classes)[0].to(
        torch.promote_types(case.dtype, torch.float32)
    )
    assert_equals_reference(cross_entropy, ce_by_definition, student, label_probs)
    assert_equals_reference(
        lambda z, t: binary_cross_entropy(z, t, class_reduction="sum"),
        bce_by_definition,
        student,
        label_probs,
    )
    assert_equals_reference(
        binary_cross_entropy,
        lambda z, t: bce_by_definition(z, t) / case.num_classes,
        student,
        label_probs,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lam", [0.5, 0.8])
def test_smoothing_after_mixing_is_timms_smoothing_before(smoothing: float, lam: float) -> None:
    """timm smooths the one-hot labels and mixes; our batches carry unsmoothed mixtures."""
    student, _ = logits(Case(10, 0.0, torch.float32))
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    theirs = mixup_target(labels, 10, lam=lam, smoothing=smoothing)
    ours = smooth(mixup_target(labels, 10, lam=lam), smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        cross_entropy(student, ours), SoftTargetCrossEntropy()(student, theirs)
    )
    torch.testing.assert_close(
        binary_cross_entropy(student, ours), BinaryCrossEntropy()(student, theirs)
    )
    torch.testing.assert_close(
        binary_cross_entropy(student, ours, "sum"),
        BinaryCrossEntropy(sum_classes=True)(student, theirs),
    )


def test_half_precision_labels_are_smoothed_in_float32() -> None:
    smoothed = smooth(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.bfloat16), 0.1)
    torch.testing.assert_close(smoothed, torch.tensor([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]]))
