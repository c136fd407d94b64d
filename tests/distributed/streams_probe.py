"""What the loader of one process gives out of a stream. Called by driver.py, once a rank, and by
the test itself for one process.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from distill.engine import Engine
from distill.recipe import load_recipe
from distill.training.build import train_loader
from distill.training.plan import make_plan
from distill.training.share import share_of_process


def seen(
    engine: Engine, recipe: Path, steps: list[tuple[int, int]], overrides: list[str]
) -> dict[int, list[Any]]:
    """Every sample of this process's part of steps [first, last), a new loader for each range:
    position -> [label, SHA-256 of pixels and label_probs].
    """
    plan = make_plan(load_recipe(recipe, overrides))
    train = plan.recipe.train
    share = share_of_process(train.batch_size_global, train.micro_batch_size, engine.world_size)
    found: dict[int, list[Any]] = {}
    for first, last in steps:
        with train_loader(plan, plan.stages[0], share, engine, first) as loader:
            for _ in range((last - first) * share.num_forwards):
                batch = next(loader)
                for i, position in enumerate(batch.positions.tolist()):
                    assert position not in found, "a position twice"
                    found[position] = [
                        int(batch.labels[i]),
                        fingerprint(batch.images[i], batch.label_probs[i]),
                    ]
    return found


def fingerprint(image: torch.Tensor, target: torch.Tensor) -> str:
    return hashlib.sha256(
        image.contiguous().numpy().tobytes() + target.numpy().tobytes()
    ).hexdigest()


def all_cases(rank: int) -> dict[str, dict[int, list[Any]]]:
    """The cases that the test wrote into cases.json, {name: [recipe, steps, overrides]}, one after
    the other.
    """
    cases = json.loads((Path(sys.argv[1]) / "cases.json").read_text())
    engine = Engine(precision="fp32")
    try:
        return {
            name: seen(engine, Path(recipe), steps, overrides)
            for name, (recipe, steps, overrides) in cases.items()
        }
    finally:
        engine.close()
