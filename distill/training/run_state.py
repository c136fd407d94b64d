"""A run's checkpoint: what its students hold, beside the plain values of where it stands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.checkpoint import Checkpoint, TrainState, prune, save
from distill.engine import Engine
from distill.recipe import dump_recipe, recipe_digest
from distill.student.student import Student
from distill.training.plan import Plan
from distill.training.rundir import best_dir, checkpoints_dir


def save_run(
    plan: Plan, step: int, values: Mapping[str, Any], students: Sequence[Student], engine: Engine
) -> str:
    """Write a checkpoint and let old ones go. Collective: every rank.

    Args:
        step: optimizer steps done.
        values: JSON-able; the students' own are added.

    Returns:
        The folder written.
    """
    tensors: dict[str, Any] = {}
    of_students: dict[str, Any] = {}
    for student in students:
        student.average_statistics()
        student_tensors, of_students[student.name] = student.state()
        tensors |= {f"{student.name}.{key}": value for key, value in student_tensors.items()}
    recipe = plan.recipe

    def write() -> str:
        path = save(
            checkpoints_dir(plan.output),
            TrainState(step, step * recipe.train.batch_size_global),
            tensors=tensors,
            values={**values, "students": of_students},
            recipe_text=dump_recipe(recipe),
            recipe_digest=recipe_digest(recipe),
            world_size=engine.world_size,
        )
        prune(checkpoints_dir(plan.output), recipe.checkpoint.keep_last, newest=path)
        return str(path)

    return engine.on_main(write)


def load_student(student: Student, checkpoint: Checkpoint, output: Path) -> None:
    """Put a student where `save_run` found it, and let it find its best weights. Collective: every
    rank.
    """
    prefix = f"{student.name}."
    names = [name for name in checkpoint.tensor_names if name.startswith(prefix)]
    tensors = {name.removeprefix(prefix): checkpoint.tensors(name) for name in names}
    student.load(tensors, checkpoint.values["students"][student.name])
    student.load_best(best_dir(output, student.name))
