"""What a student learns from: one file a method, pure functions of tensors; `objective` adds hard
and soft terms.

Every loss promotes its inputs to float32 (float64 stays), gives a scalar, keeps gradients away from
the teacher, and never waits for the device.
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
