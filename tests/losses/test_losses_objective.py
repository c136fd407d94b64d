"""Objective: weights, what is reported, what each recipe section builds, and that nothing waits for
the device.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from losses_cases import Case, distributions, logits
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from distill.losses import (
    HardTerm,
    LossTerms,
    Objective,
    Outputs,
    SoftTerm,
    TeacherOutputs,
    build_objective,
)
from distill.losses.bkl import bce_teacher, bkl
from distill.losses.confidence import confident
from distill.losses.dist import dist
from distill.losses.dkd import dkd, target_class, teachers_class
from distill.losses.hard import binary_cross_entropy, cross_entropy, smooth
from distill.losses.kl import kl
from distill.recipe import schema


@dataclass(frozen=True)
class Batch:
    label_probs: Tensor
    labels: Tensor


STUDENT, TEACHER = logits(Case(10, 0.0, torch.float32))
BATCH = Batch(*distributions(10))
HARD = {
    "ce": (
        {"loss": "ce", "smoothing": 0.1},
        lambda: cross_entropy(STUDENT, smooth(BATCH.label_probs, 0.1)),
    ),
    "bce": (
        {"loss": "bce", "smoothing": 0.2, "class_reduction": "sum"},
        lambda: binary_cross_entropy(STUDENT, smooth(BATCH.label_probs, 0.2), "sum"),
    ),
}
SOFT = {
    "kl": ({"loss": "kl", "temperature": 2.0}, lambda: kl(STUDENT, TEACHER, 2.0)),
    "bkl": ({"loss": "bkl", "temperature": 3.0}, lambda: bkl(STUDENT, TEACHER, 3.0)),
    "bce_teacher": ({"loss": "bce_teacher"}, lambda: bce_teacher(STUDENT, TEACHER)),
    "dkd": (
        {"loss": "dkd", "alpha": 0.5, "beta": 8.0, "temperature": 4.0},
        lambda: dkd(STUDENT, TEACHER, target_class(BATCH.label_probs, BATCH.labels), 0.5, 8.0, 4.0),
    ),
    "dist": (
        {"loss": "dist", "beta": 2.0, "gamma": 0.5, "temperature": 3.0},
        lambda: dist(STUDENT, TEACHER, 2.0, 0.5, 3.0),
    ),
}
# The same sections with their options: name -> section, expected value, expected share of samples
# kept.
OPTIONS = {
    "kl_sure": (
        {"loss": "kl", "temperature": 2.0, "min_confidence": 0.4},
        lambda: kl(STUDENT, TEACHER, 2.0, 0.4),
        lambda: confident(TEACHER, 0.4).float().mean(),
    ),
    "bkl_sure": (
        {"loss": "bkl", "temperature": 3.0, "min_confidence": 0.4},
        lambda: bkl(STUDENT, TEACHER, 3.0, 0.4),
        lambda: confident(TEACHER, 0.4).float().mean(),
    ),
    "dkd_teacher": (
        {"loss": "dkd", "alpha": 0.5, "beta": 8.0, "temperature": 4.0, "target": "teacher"},
        lambda: dkd(STUDENT, TEACHER, teachers_class(TEACHER), 0.5, 8.0, 4.0),
        lambda: None,
    ),
}


def build(**sections: dict[str, object]) -> Objective:
    return build_objective(TypeAdapter(schema.ObjectiveSpec).validate_python(sections))


@pytest.mark.parametrize("name", HARD)
def test_hard_sections(name: str) -> None:
    section, expected = HARD[name]
    terms = build(hard={**section, "weight": 0.5})(Outputs(STUDENT), None, BATCH)
    assert terms == LossTerms(total=0.5 * expected(), hard=expected(), soft=None)


@pytest.mark.parametrize("name", SOFT)
def test_soft_sections(name: str) -> None:
    section, expected = SOFT[name]
    terms = build(soft={**section, "weight": 0.25})(
        Outputs(STUDENT), TeacherOutputs(TEACHER), BATCH
    )
    assert terms == LossTerms(total=0.25 * expected(), hard=None, soft=expected())


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_soft_sections(name: str) -> None:
    section, expected, kept = OPTIONS[name]
    terms = build(soft={**section, "weight": 0.25})(
        Outputs(STUDENT), TeacherOutputs(TEACHER), BATCH
    )
    assert terms == LossTerms(total=0.25 * expected(), soft=expected(), kept=kept())
    plain = {
        key: value for key, value in section.items() if key not in ("min_confidence", "target")
    }
    assert terms.soft != build(soft=plain)(Outputs(STUDENT), TeacherOutputs(TEACHER), BATCH).soft, (
        "the option changes nothing here"
    )


def test_the_share_of_samples_kept_is_a_plain_number() -> None:
    student = STUDENT.clone().requires_grad_()
    terms = build(soft=OPTIONS["kl_sure"][0])(
        Outputs(student), TeacherOutputs(TEACHER.bfloat16()), BATCH
    )
    assert terms.kept is not None
    assert 0 < terms.kept < 1
    assert (terms.kept.dtype, terms.kept.shape, terms.kept.requires_grad) == (
        torch.float32,
        (),
        False,
    )


@pytest.mark.parametrize("min_confidence", [0, 1, 1.5, -0.1])
def test_a_threshold_that_keeps_all_or_none_is_refused(min_confidence: float) -> None:
    for loss in ("kl", "bkl"):
        with pytest.raises(ValidationError, match="min_confidence"):
            build(soft={"loss": loss, "min_confidence": min_confidence})


def test_every_loss_of_the_schema_is_covered_here() -> None:
    known = TypeAdapter(schema.HardSpec | schema.SoftSpec).json_schema()["$defs"].values()
    assert {section["properties"]["loss"]["const"] for section in known} == {*HARD, *SOFT}
    hints = TypeAdapter(schema.HintSpec).json_schema()["$defs"].values()
    for section in hints:
        name = section["properties"]["loss"]["const"]
        own = Path(__file__).with_name(f"test_losses_{name}.py")
        assert own.is_file(), "each hint has a file of its own"


def test_total_is_the_weighted_sum_of_unweighted_terms() -> None:
    terms = build(hard={"loss": "ce", "weight": 0.5}, soft={"loss": "kl", "weight": 3.0})(
        Outputs(STUDENT), TeacherOutputs(TEACHER), BATCH
    )
    torch.testing.assert_close(terms.hard, cross_entropy(STUDENT, BATCH.label_probs))
    torch.testing.assert_close(terms.soft, kl(STUDENT, TEACHER))
    torch.testing.assert_close(terms.total, 0.5 * terms.hard + 3.0 * terms.soft)


def test_plain_values_make_an_objective_without_a_recipe() -> None:
    objective = Objective(HardTerm(cross_entropy, 2.0), SoftTerm(lambda s, t, _: kl(s, t), 1.0))
    torch.testing.assert_close(
        objective(Outputs(STUDENT), TeacherOutputs(TEACHER), BATCH).total,
        2 * cross_entropy(STUDENT, BATCH.label_probs) + kl(STUDENT, TEACHER),
    )
    with pytest.raises(ValueError, match="a hard, a soft or a masked term"):
        Objective()


def test_soft_labels_alone_take_images_labelled_in_another_space() -> None:
    """First stage of Table 14: ImageNet-21K images, a 1K teacher and student, no label loss."""
    elsewhere = Batch(torch.zeros(8, 50), torch.full((8,), 49))
    torch.testing.assert_close(
        build(soft={"loss": "kl"})(Outputs(STUDENT), TeacherOutputs(TEACHER), elsewhere).total,
        kl(STUDENT, TEACHER),
    )
    with pytest.raises(ValueError, match="label distribution"):
        build(hard={"loss": "ce"})(Outputs(STUDENT), None, elsewhere)


def test_dkd_without_labels_sets_the_teachers_class_apart() -> None:
    elsewhere = Batch(torch.full((8, 50), torch.nan), torch.full((8,), -1))
    section, expected, _ = OPTIONS["dkd_teacher"]
    torch.testing.assert_close(
        build(soft=section)(Outputs(STUDENT), TeacherOutputs(TEACHER), elsewhere).total, expected()
    )


@pytest.mark.parametrize(
    ("sections", "reads"),
    [
        *(({"soft": SOFT[name][0]}, name == "dkd") for name in SOFT),
        *(({"soft": OPTIONS[name][0]}, False) for name in OPTIONS),
        *(({"hard": HARD[name][0], "soft": {"loss": "kl"}}, True) for name in HARD),
    ],
)
def test_who_reads_labels(sections: dict[str, object], reads: bool) -> None:
    """What the section says of itself is what the objective does: labels of nowhere poison the
    loss, or leave no trace.
    """
    spec = TypeAdapter(schema.ObjectiveSpec).validate_python(sections)
    assert spec.reads_labels is reads
    nowhere = Batch(torch.full((8, 10), torch.nan), torch.zeros(8, dtype=torch.int64))
    with_labels, without = (
        build_objective(spec)(Outputs(STUDENT), TeacherOutputs(TEACHER), batch).total
        for batch in (BATCH, nowhere)
    )
    assert torch.equal(with_labels, without) is not reads


def test_a_soft_term_wants_a_teacher() -> None:
    with pytest.raises(ValueError, match="no teacher outputs"):
        build(soft={"loss": "kl"})(Outputs(STUDENT), None, BATCH)


@pytest.mark.parametrize("soft", [*SOFT, *OPTIONS])
def test_nothing_waits_for_the_device(soft: str) -> None:
    """Meta tensors have no values: whatever reads one, or branches on one, raises here."""
    student = torch.empty(8, 10, device="meta", dtype=torch.bfloat16, requires_grad=True)
    batch = Batch(BATCH.label_probs.to("meta"), BATCH.labels.to("meta"))
    for hard in HARD.values():
        terms = build(hard=hard[0], soft={**SOFT, **OPTIONS}[soft][0])(
            Outputs(student), TeacherOutputs(TEACHER.to("meta")), batch
        )
        terms.total.backward()
    assert student.grad is not None


def test_compiles_without_a_graph_break() -> None:
    for hard, soft in (
        ("ce", "kl"),
        ("bce", "bkl"),
        ("bce", "bce_teacher"),
        ("ce", "dkd"),
        ("ce", "dist"),
        *(("ce", name) for name in OPTIONS),
    ):
        objective = build(hard=HARD[hard][0], soft={**SOFT, **OPTIONS}[soft][0])
        compiled = torch.compile(
            lambda s, o=objective: o(Outputs(s), TeacherOutputs(TEACHER), BATCH),
            backend="eager",
            fullgraph=True,
        )
        assert compiled(STUDENT) == objective(Outputs(STUDENT), TeacherOutputs(TEACHER), BATCH)
