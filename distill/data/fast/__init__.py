"""The training view without Pillow where another library is faster: the same random decisions, and
pixels within the distances that docs/method.md states.
"""
