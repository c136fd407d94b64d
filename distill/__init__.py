"""Large-scale image knowledge distillation (VanillaKD, arXiv 2305.15781).

    import distill

    recipe = distill.load_recipe("quickstart/students", ["train.budget=1 epochs"])
    distill.train(recipe)  # in recipe.output_dir, or resumes the run there
    scores = distill.evaluate(recipe.output_dir)  # scores["kd"].top1
    distill.export(recipe.output_dir, "exports/kd", student="kd")
    distill.publish(recipe.output_dir, "alice/kd", student="kd", licence="mit")

The functions are imported when they are first used, since torch takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.recipe import load_recipe
    from distill.release import evaluate_models as evaluate
    from distill.release import export_student as export
    from distill.release import publish_model as publish
    from distill.training.loop import train

__version__ = "0.1.0.dev0"
__all__ = ["evaluate", "export", "load_recipe", "publish", "train"]

_MODULES = {
    "evaluate": ("distill.release", "evaluate_models"),
    "export": ("distill.release", "export_student"),
    "load_recipe": ("distill.recipe", "load_recipe"),
    "publish": ("distill.release", "publish_model"),
    "train": ("distill.training.loop", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _MODULES[name]
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
