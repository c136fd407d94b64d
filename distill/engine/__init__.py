"""The only place that configures Accelerate, DeepSpeed, process groups, precision and compilation."""

from distill.engine.core import TRACKERS, Engine
from distill.engine.environment import launched_processes, refuse_contradictions
from distill.engine.rendezvous import check_rendezvous

__all__ = ["TRACKERS", "Engine", "check_rendezvous", "launched_processes", "refuse_contradictions"]
