"""Finished weights, wherever they lie: found, judged on a set, exported. What `distill evaluate`
and `distill export` do.
"""

from distill.judge.find import Found, find_models
from distill.judge.release import export_student
from distill.judge.scores import judge

__all__ = ["Found", "export_student", "find_models", "judge"]
