"""CRD: value and gradient against loops over samples and negatives, the normaliser, the bank."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.losses.crd import CRD, log_mean_exp, noise_contrast
from distill.losses.hint import Samples

COUNT, K, WIDTH, TEMPERATURE = 30, 12, 8, 0.5


@dataclass
class Part:
    """The part of a micro-batch that CRD reads."""

    indices: np.ndarray
    labels: Tensor
    step: int = 0
    epoch: int = 0
    label_probs: Tensor = field(default_factory=lambda: torch.empty(0))


def part(rows: list[int], step: int = 0) -> Part:
    return Part(np.array(rows), torch.tensor([row % 3 for row in rows]), step)


SAMPLES = Samples(
    seed=5,
    count=COUNT,
    rows_of=lambda indices: indices,
    key="",
    labelled=True,
    device=torch.device("cpu"),
    num_processes=1,
)


def heads(samples: Samples = SAMPLES, **changes: Any) -> CRD:
    settings = {
        "num_negatives": K,
        "replacement": True,
        "temperature": TEMPERATURE,
        "momentum": 0.5,
        "width": WIDTH,
        "bank_on_host": False,
    }
    torch.manual_seed(0)
    return CRD(5, 7, samples, None, **{**settings, **changes})


def features(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, width, 1, 1, generator=draw) for width in (5, 7))  # type: ignore[return-value]


def loss_of(crd: CRD, batch: Part, seed: int = 0) -> Tensor:
    student, teacher = features(len(batch.indices), seed)
    return crd.loss(crd((student,), (teacher,)), (teacher,), batch)


def by_definition(
    crd: CRD, batch: Part, seed: int = 0
) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    """Eq. 18 and 19 in float64, with a list of negatives for each sample.

    Returns:
        The loss, the means of exp(score), weight and bias of both maps.
    """
    student, teacher = (each.flatten(1).double() for each in features(len(batch.indices), seed))
    linear = [
        [p.detach().double().requires_grad_() for p in (each.weight, each.bias)]
        for each in (crd.student, crd.teacher)
    ]
    sides = []
    for rows, (weight, bias) in zip((student, teacher), linear, strict=True):
        embedded = [weight @ row + bias for row in rows]
        sides.append([each / each.square().sum().sqrt() for each in embedded])
    drawn, losses, means = crd._draw(batch.step), [], []
    bank = crd.bank
    for embeddings, others in zip(sides, (bank.teacher, bank.student), strict=True):
        scored = []  # exp of the score of the positive, and those of the negatives
        for i, row in enumerate(batch.indices):
            label = int(batch.labels[i])
            kept = [j for j in drawn if j != row and (label < 0 or bank.labels[j] != label)]
            exps = [torch.exp(embeddings[i] @ others[j].double() / TEMPERATURE) for j in kept]
            scored.append(
                (torch.exp(embeddings[i] @ others[row].double() / TEMPERATURE), torch.stack(exps))
            )
        each_mean = [(own + K * exps.mean()) / (K + 1) for own, exps in scored]
        means.append(torch.stack(each_mean).mean().detach())
        z = COUNT * means[-1]
        terms = []
        for own, exps in scored:
            positive, negative = own / z, exps / z
            of_positive = positive / (positive + K / COUNT)
            of_negatives = negative / (negative + K / COUNT)
            total = of_positive.log() + K / len(exps) * (1 - of_negatives).log().sum()
            terms.append(-total)
        losses.append(torch.stack(terms).mean())
    return losses[0] + losses[1], torch.stack(means), linear


@pytest.mark.parametrize("seen", [False, True], ids=["first step", "labels in the bank"])
def test_equals_its_definition(seen: bool) -> None:
    crd = heads()
    if seen:
        crd.bank.labels.copy_(torch.arange(COUNT) % 3)
    batch = part([4, 9, 2, 11, 20])
    own = {int(row) for row in crd._draw(0)} & set(batch.indices)
    assert own, "a sample should be among the negatives"
    value = loss_of(crd, batch)
    value.backward()
    reference, means, linear = by_definition(crd, batch)
    reference.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=0)
    torch.testing.assert_close(crd.log_z.double(), (COUNT * means).log(), rtol=1e-5, atol=1e-6)
    for module, parameters in zip((crd.student, crd.teacher), linear, strict=True):
        for one, other in zip((module.weight, module.bias), parameters, strict=True):
            assert one.grad is not None
            assert one.grad.abs().max() > 1e-3
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-6)


def test_by_hand() -> None:
    """Two samples of 4, two negatives: one at a right angle, the other opposite, which the second
    sample leaves out. Temperature 1.
    """
    positive, negative = torch.tensor([1.0, 1.0]), torch.tensor([[0.0, -1.0], [0.0, -1.0]])
    left_out = torch.tensor([[False, False], [False, True]])
    e = math.e
    mean = ((e + 1 + 1 / e) / 3 + (e + 2 * 1) / 3) / 2
    assert log_mean_exp(positive, negative, left_out).item() == pytest.approx(math.log(mean))
    z, noise = 4 * mean, 2 / 4

    def h(exp: float) -> float:
        return exp / z / (exp / z + noise)

    first = -math.log(h(e)) - math.log(1 - h(1)) - math.log(1 - h(1 / e))
    second = -math.log(h(e)) - 2 * math.log(1 - h(1))
    shift = math.log(z) + math.log(noise)
    found = noise_contrast(positive - shift, negative - shift, left_out)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_estimate_is_unbiased(replacement: bool) -> None:
    """Over many steps the mean loss is k times the mean over all samples of other classes."""
    crd = heads(replacement=replacement)
    crd.bank.labels.copy_(torch.arange(COUNT) % 3)
    positive = torch.zeros(1)
    scores = torch.linspace(-3, 3, COUNT)  # depends on the row: 10, 20 samples of other classes
    others = (torch.arange(COUNT) % 3 != 1) & (torch.arange(COUNT) != 4)
    exact = math.log(2) + K * torch.nn.functional.softplus(scores[others]).mean().item()
    found = []
    for step in range(4000):
        drawn = crd._draw(step)
        found.append(noise_contrast(positive, scores[drawn][None], ~others[drawn][None]).item())
    error = np.std(found) / math.sqrt(len(found))
    assert error < 0.1
    assert abs(np.mean(found) - exact) < 4 * error


def test_negatives_of_a_step() -> None:
    with_replacement, without = heads(), heads(replacement=False)
    for crd in (with_replacement, without):
        draws = np.stack([crd._draw(step) for step in range(500)])
        assert np.array_equal(draws[7], crd._draw(7))
        assert not np.array_equal(draws[7], draws[8])
        counts = np.bincount(draws.ravel(), minlength=COUNT)  # 200 expected
        assert counts.min() > 140
        assert counts.max() < 260
        most = max(np.unique(draw, return_counts=True)[1].max() for draw in draws)
        assert (most == 1) == (crd is without)
    assert sorted(heads(replacement=False, num_negatives=COUNT)._draw(0)) == list(range(COUNT))


def test_a_class_that_is_not_known_leaves_out_the_sample_alone() -> None:
    unlabelled = heads(replace(SAMPLES, labelled=False))
    batch = part([4, 9, 2])
    loss_of(unlabelled, batch)
    unlabelled.after_step()
    assert (unlabelled.bank.labels == -1).all()
    value = loss_of(unlabelled, part([4, 9, 2], step=1), seed=1)
    no_labels = Part(batch.indices, torch.full((3,), -1), step=1)
    fresh = heads(replace(SAMPLES, labelled=False))
    fresh.load_state_dict(unlabelled.state_dict())
    reference = loss_of(fresh, no_labels, seed=1)
    assert torch.equal(value, reference)


# ---- the normaliser ------------------------------------------------------------------------------


def test_z_is_that_of_the_first_micro_batch() -> None:
    crd = heads()
    loss_of(crd, part([4, 9]))
    first = crd.log_z.clone()
    assert torch.isfinite(first).all()
    loss_of(crd, part([5, 6]), seed=1)
    crd.after_step()
    loss_of(crd, part([7, 8], step=1), seed=2)
    assert torch.equal(crd.log_z, first)
    resumed = heads()
    resumed.load_state_dict(crd.state_dict())
    loss_of(resumed, part([1, 2], step=2), seed=3)
    assert torch.equal(resumed.log_z, first), "a resumed run keeps Z"


# ---- the bank ------------------------------------------------------------------------------------


def test_the_bank_after_a_step() -> None:
    """Row 4 is seen three times in two forwards: its last embedding counts, and moves the row as it
    was before the step.
    """
    crd = heads(momentum=0.25)
    before = {name: tensor.clone() for name, tensor in crd.bank.state_dict().items()}
    batches = [part([4, 9, 4]), part([2, 4, 3])]
    embedded = []
    for seed, batch in enumerate(batches):
        loss_of(crd, batch, seed)
        student, teacher = features(3, seed)
        embedded.append(crd((student,), (teacher,)))
        assert torch.equal(crd.bank.student, before["student"]), "it changes after the step"
    crd.after_step()
    for i, side in enumerate(("student", "teacher")):
        expected = before[side].clone()
        for row, now in ((9, embedded[0][i][1]), (2, embedded[1][i][0]), (3, embedded[1][i][2])):
            mixed = 0.25 * before[side][row] + 0.75 * now
            expected[row] = mixed / mixed.norm()
        mixed = 0.25 * before[side][4] + 0.75 * embedded[1][i][1]
        expected[4] = mixed / mixed.norm()
        torch.testing.assert_close(crd.bank.state_dict()[side], expected.detach())
    labels = torch.full((COUNT,), -1)
    labels[[4, 9, 2, 3]] = torch.tensor([1, 0, 2, 0])
    assert torch.equal(crd.bank.labels, labels)


def test_first_values_have_the_spread_of_the_released_code() -> None:
    crd = heads(replace(SAMPLES, count=2000), width=128)
    bound = 1 / math.sqrt(128 / 3)
    for tensor in (crd.bank.student, crd.bank.teacher):
        assert tensor.abs().max() == pytest.approx(bound, rel=1e-3)
        assert tensor.std() == pytest.approx(bound / math.sqrt(3), rel=1e-2)
    assert not torch.equal(crd.bank.student, crd.bank.teacher)


def test_what_wraps_the_heads_does_not_see_the_bank() -> None:
    crd = heads()
    assert {name for name, _ in crd.named_buffers()} == {"log_z"}
    state = crd.state_dict()
    assert {name for name in state if name.startswith("bank.")} == {
        "bank.labels",
        "bank.student",
        "bank.teacher",
    }
    del state["bank.teacher"]
    with pytest.raises(RuntimeError, match=r"bank\.teacher"):
        heads().load_state_dict(state)


def test_a_bank_on_the_host_gives_the_same_bits() -> None:
    both = heads(), heads(bank_on_host=True)
    for step in range(3):
        values = [loss_of(crd, part([4, 9, step, 4], step), step) for crd in both]
        assert torch.equal(*values)
        for crd in both:
            crd.after_step()
    for name, tensor in both[0].state_dict().items():
        assert torch.equal(tensor, both[1].state_dict()[name]), name


# ---- numbers at the edge -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_by_the_heads(dtype: torch.dtype) -> None:
    crd = heads(temperature=0.01)
    student, teacher = (100 * each for each in features(4))
    with torch.autocast("cpu", dtype=dtype):
        embedded = crd((student.to(dtype),), (teacher.to(dtype),))
    assert all(each.dtype == torch.float32 for each in embedded)
    value = crd.loss(embedded, (teacher,), part([1, 2, 3, 4]))
    value.backward()
    assert value.dtype == torch.float32
    for parameter in crd.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_a_zero_vector_and_a_sample_without_negatives_stay_finite() -> None:
    crd = heads()
    crd.bank.labels.fill_(1)
    with torch.no_grad():
        for parameter in crd.student.parameters():
            parameter.zero_()
    value = loss_of(crd, part([1, 4, 7]))  # all of class 1
    value.backward()
    crd.after_step()
    assert torch.isfinite(value)
    assert torch.isfinite(crd.log_z).all()
    assert all(torch.isfinite(p.grad).all() for p in crd.parameters() if p.grad is not None)
    assert torch.isfinite(crd.bank.student).all()
