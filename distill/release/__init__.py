"""`distill evaluate`, `distill export` and `distill publish`: find finished weights, evaluate them,
write them, publish them.

The functions are imported when they are first used, since torch takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.release.export import export_student
    from distill.release.find import Found, find_models
    from distill.release.publish import publish_model
    from distill.release.scores import evaluate_models

__all__ = ["Found", "evaluate_models", "export_student", "find_models", "publish_model"]

_MODULES = {
    "Found": "find",
    "evaluate_models": "scores",
    "export_student": "export",
    "find_models": "find",
    "publish_model": "publish",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
