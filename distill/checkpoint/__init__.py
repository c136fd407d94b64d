"""Checkpoints of a run: complete or absent, verified when read, the oldest deleted.

store        save, load and delete checkpoints
layout       the names of files in a run's folder; imports no torch
lock         the lock on a folder in which one process works; imports no torch
differences  what differs between two recipes

This package knows nothing of training. Student, optimizer and loader hand over plain tensors and
JSON values and get them back; nothing is pickled.
"""
