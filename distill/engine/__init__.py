"""The only place that configures Accelerate, DeepSpeed, process groups, precision and compilation."""

from distill.engine.core import TRACKERS, Engine
from distill.engine.environment import launched_processes, refuse_contradictions

__all__ = ["TRACKERS", "Engine", "launched_processes", "refuse_contradictions"]
