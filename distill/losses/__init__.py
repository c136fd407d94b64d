"""Losses: one file for each method, pure functions of tensors; `objective` adds two terms.

Every loss converts its inputs to float32 (float64 stays), returns a scalar, gives the teacher no
gradient, and never waits for the device.
"""

from distill.losses.objective import (
    HardTerm,
    LossTerms,
    Objective,
    SoftTerm,
    Supervision,
    build_objective,
)

__all__ = ["HardTerm", "LossTerms", "Objective", "SoftTerm", "Supervision", "build_objective"]
