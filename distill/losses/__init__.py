"""Losses: one file for each method, functions of tensors; `objective` adds the terms.

Every loss converts its inputs to float32 (float64 stays), returns a scalar, gives the teacher no
gradient, and never waits for the device.
"""

from distill.losses.hint import Heads, HintTerm, Supervision
from distill.losses.objective import HardTerm, LossTerms, Objective, SoftTerm, build_objective
from distill.losses.outputs import POOLED, FeatureKey, FeatureMap, Outputs, TeacherOutputs
from distill.losses.teachers import Combination, Lessons

__all__ = [
    "POOLED",
    "Combination",
    "FeatureKey",
    "FeatureMap",
    "HardTerm",
    "Heads",
    "HintTerm",
    "Lessons",
    "LossTerms",
    "Objective",
    "Outputs",
    "SoftTerm",
    "Supervision",
    "TeacherOutputs",
    "build_objective",
]
