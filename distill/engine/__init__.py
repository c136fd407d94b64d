"""The only place that configures Accelerate, DeepSpeed, process groups, precision and
compilation.
"""

from distill.engine.core import Engine
from distill.engine.environment import launched_processes, refuse_contradictions
from distill.engine.rendezvous import check_rendezvous
from distill.engine.trackers import TRACKERS, Tracking

__all__ = [
    "TRACKERS",
    "Engine",
    "Tracking",
    "check_rendezvous",
    "launched_processes",
    "refuse_contradictions",
]
