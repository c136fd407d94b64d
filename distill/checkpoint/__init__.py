"""Checkpoints that survive anything but the disk itself: atomic save, verified resume, retention,
signals.

This room knows nothing of training. Owners (student, optimizer, average, loader) hand over plain
tensors and JSON values and get them back; nothing is pickled.
"""

from distill.checkpoint.atomic import (
    CheckpointError,
    atomic_directory,
    clean,
    current_directory,
    replace_text,
    truncate_jsonl,
)
from distill.checkpoint.signals import BrokenOff, Signals
from distill.checkpoint.store import Checkpoint, TrainState, latest, load, prune, save, storable

__all__ = [
    "BrokenOff",
    "Checkpoint",
    "CheckpointError",
    "Signals",
    "TrainState",
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
