"""Large-scale image knowledge distillation (VanillaKD, arXiv 2305.15781).

    import distill

    run = distill.train("quickstart/students", {"train.budget": "1 epochs"})  # or resumes it
    scores = distill.evaluate(run.output)  # scores["kd"].top1
    distill.similarity("runs/quickstart/teacher", run.output, student_b="kd").pairs[0].cka
    distill.export(run.output, "exports/kd", student="kd")
    distill.publish(run.output, "alice/kd", student="kd", licence="mit")

The functions are imported when they are first used, since torch takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.recipe import load_recipe
    from distill.release.average import average_models as average
    from distill.release.evaluate import evaluate_models as evaluate
    from distill.release.export import export_student as export
    from distill.release.publish import publish_model as publish
    from distill.release.similarity.interface import layer_similarity as similarity
    from distill.training.interface import train_recipe as train

__version__ = "0.1.0.dev0"
__all__ = ["average", "evaluate", "export", "load_recipe", "publish", "similarity", "train"]

_MODULES = {
    "average": ("distill.release.average", "average_models"),
    "evaluate": ("distill.release.evaluate", "evaluate_models"),
    "export": ("distill.release.export", "export_student"),
    "load_recipe": ("distill.recipe", "load_recipe"),
    "publish": ("distill.release.publish", "publish_model"),
    "similarity": ("distill.release.similarity.interface", "layer_similarity"),
    "train": ("distill.training.interface", "train_recipe"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _MODULES[name]
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
