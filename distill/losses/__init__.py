"""Losses: one file for each method, functions of tensors; `objective` adds the terms.

Every loss converts its inputs to float32 (float64 stays), returns a scalar, gives the teacher no
gradient, and never waits for the device.
"""

from distill.losses.objective import (
    FeatureMap,
    HardTerm,
    HintTerm,
    LossTerms,
    Objective,
    SoftTerm,
    Supervision,
    build_objective,
)
from distill.losses.outputs import Outputs, TeacherOutputs

__all__ = [
    "FeatureMap",
    "HardTerm",
    "HintTerm",
    "LossTerms",
    "Objective",
    "Outputs",
    "SoftTerm",
    "Supervision",
    "TeacherOutputs",
    "build_objective",
]
