"""Checkpoints that survive anything but the disk itself: atomic save, verified resume, retention,
signals.

This room knows nothing of training. Owners (student, optimizer, average, loader) hand over plain
tensors and JSON values and get them back; nothing is pickled.
"""

from distill.checkpoint.signals import Signals, WaitInterruptedError
from distill.checkpoint.store import Checkpoint, TrainState, latest, load, prune, save, storable
from distill.files import (
    CheckpointError,
    atomic_directory,
    clean,
    current_directory,
    replace_text,
    truncate_jsonl,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Signals",
    "TrainState",
    "WaitInterruptedError",
    "atomic_directory",
    "clean",
    "current_directory",
    "latest",
    "load",
    "prune",
    "replace_text",
    "save",
    "storable",
    "truncate_jsonl",
]
