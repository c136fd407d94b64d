"""The only place that configures Accelerate, DeepSpeed, process groups, precision and
compilation.

- core: the engine, one for each command
- environment, rendezvous: what a launcher set, and how the processes meet
- signals: SIGTERM, SIGUSR1 and Ctrl-C
- agreement: what all processes agree on in a step
- zero: DeepSpeed's ZeRO
- trackers: TensorBoard, wandb and trackio
- host_memory: the memory of the CPU
"""

from distill.engine.core import Engine
from distill.engine.environment import check_launch, launched_processes
from distill.engine.trackers import TRACKERS, Tracking

__all__ = [
    "TRACKERS",
    "Engine",
    "Tracking",
    "check_launch",
    "launched_processes",
]
