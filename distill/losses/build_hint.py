"""From the hint of a recipe to its loss, for the features of a pair of models."""

from typing import assert_never

from distill.losses.all_reduce import Group
from distill.losses.cc import CC, CorrelationCongruence
from distill.losses.crd import CRD
from distill.losses.feature import Feature
from distill.losses.fitnet import FitNet
from distill.losses.hint import Heads, HintTerm, Samples
from distill.losses.outputs import FeatureMap
from distill.losses.reviewkd import ReviewKD
from distill.losses.rkd import RKD
from distill.recipe import schema

HintMaps = tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]]
"""The features of the student and of the teacher that a hint compares, each in ascending order."""


def hint_term(
    spec: schema.HintSpec, maps: HintMaps, group: Group | None, samples: Samples | None = None
) -> HintTerm:
    """Return the hint that a recipe describes.

    Args:
        group: the processes that share a micro-batch; losses that relate samples to each other
            relate those of all of them.
        samples: what CRD trains on.
    """
    # ReviewKD: the side with more levels leaves out its largest maps.
    levels = min(map(len, maps))
    student, teacher = maps = maps[0][-levels:], maps[1][-levels:]
    bank_of = samples.key if samples and isinstance(spec, schema.CRDSpec) else None
    return HintTerm(
        student_features=tuple(each.key for each in student),
        teacher_features=tuple(each.key for each in teacher),
        build_heads=lambda: _heads(spec, maps, group, samples),
        heads_key=(spec.heads, student, teacher, bank_of),
        weight=spec.weight,
    )


def _heads(
    spec: schema.HintSpec, maps: HintMaps, group: Group | None, samples: Samples | None
) -> Heads:
    widths = maps[0][-1].channels, maps[1][-1].channels
    match spec:
        case schema.FitNetSpec():
            return FitNet(*widths, spec.distance)
        case schema.CCSpec():
            if spec.reference == "original":
                return CorrelationCongruence(group)
            return CC(*widths, group)
        case schema.RKDSpec():
            return RKD(spec.distance_weight, spec.angle_weight, group)
        case schema.CRDSpec():
            assert samples
            return CRD(
                *widths,
                samples,
                group,
                num_negatives=spec.negatives,
                replacement=spec.reference == "paper_code",
                temperature=spec.temperature,
                momentum=spec.momentum,
                width=spec.width,
                bank_on_host=spec.bank == "host",
            )
        case schema.FeatureSpec():
            return Feature(*widths, spec.distance)
        case schema.ReviewKDSpec():
            return ReviewKD(*maps, spec.warmup_epochs)
        case _:
            assert_never(spec)
