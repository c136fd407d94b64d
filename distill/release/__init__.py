"""Finished weights, wherever they lie: found, judged on a set, exported. What `distill evaluate`
and `distill export` do.
"""

from distill.release.export import export_student
from distill.release.find import Found, find_models
from distill.release.scores import judge

__all__ = ["Found", "export_student", "find_models", "judge"]
