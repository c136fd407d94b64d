"""`distill evaluate` and `distill export`: find finished weights, evaluate them, write them."""

from distill.release.export import export_student
from distill.release.find import Found, find_models
from distill.release.scores import evaluate_models

__all__ = ["Found", "evaluate_models", "export_student", "find_models"]
