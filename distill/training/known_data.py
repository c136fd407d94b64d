"""What `distill recipe check` knows of a recipe's data: those on this machine are opened, and the
classes that the recipe names itself are read.
"""

import glob
import re
from pathlib import Path

from distill.data import fashion
from distill.data.label_sets import class_list
from distill.data.records import at
from distill.data.walk import matching_files
from distill.errors import InputError
from distill.recipe import Recipe, schema
from distill.training.opened import Opened, open_sources, within
from distill.training.plan import Plan, make_plan
from distill.training.sources import reader_of_labels

OPEN_S = 30.0  # listing a million files over a network can take minutes
# Paths that are not looked for on this machine: addresses, and names in braces.
_REMOTE_OR_MANY = re.compile(r"://|\{")

Sources = dict[str, Opened | None]
"""What was opened before, by the settings of the data; None if that took longer than OPEN_S."""


def paths_of_data(recipe: Recipe) -> dict[str, Path | None]:
    """Return where each source of a recipe is, by its key; None where it is not looked for on this
    machine. Sources within the package are left out.
    """
    root, paths = Path(recipe.data.root).expanduser(), dict[str, Path | None]()
    trained = [
        (f"{prefix}data.train", recipe.at_stage(i).data.train)
        for i, prefix in enumerate(recipe.stage_keys)
    ]
    for key, source in (*trained, ("data.eval", recipe.data.eval)):
        if isinstance(source, schema.HoldOutSpec):
            continue  # a part of data.train
        if source is not None and source.path is not None:
            remote = _REMOTE_OR_MANY.search(source.path)
            paths[key] = None if remote else at(root, source.path, f"{key}.path").expanduser()
    return paths


def is_here(path: Path, key: str) -> bool:
    """Whether a path of a recipe, perhaps a pattern, is on this machine."""
    return path.exists() or (glob.has_magic(str(path)) and bool(matching_files(str(path), key)[0]))


def plan_here(recipe: Recipe, opened: Sources) -> Plan | None:
    """Return the plan of a recipe whose data are on this machine.

    Args:
        opened: what was opened before; this adds to it.

    Returns:
        None if some are not here, or are not open after OPEN_S.

    Raises:
        InputError: as `make_plan`.
    """
    if not all(path and is_here(path, key) for key, path in paths_of_data(recipe).items()):
        return None
    stages = [recipe.at_stage(i).data.train.model_dump_json() for i in range(recipe.num_stages)]
    name = "\n".join([recipe.data.model_dump_json(), *stages, str(recipe.trains_classifiers)])
    if name not in opened:
        found = within(OPEN_S, lambda: open_sources(recipe))
        if isinstance(found, Exception):
            raise found
        opened[name] = found
    sources = opened[name]
    return None if sources is None else make_plan(recipe, sources)


def named_classes(recipe: Recipe) -> tuple[str, ...]:
    """Return the classes that the recipe names itself for labels that are read; none if it names
    none, or in a file that is not here.
    """
    if not recipe.trains_classifiers:
        return ()
    root, evaluated = Path(recipe.data.root).expanduser(), recipe.data.eval
    read: list[tuple[str, schema.SourceSpec]] = []
    if recipe.evaluate.reads_labels and not isinstance(evaluated, schema.HoldOutSpec | None):
        read.append(("data.eval", evaluated))
    for index, prefix in enumerate(recipe.stage_keys):
        own = recipe.at_stage(index)
        if reader_of_labels(own, prefix):
            read.append((f"{prefix}data.train", own.data.train))
    for key, spec in read:
        if isinstance(spec, schema.FashionMnistSpec):
            return fashion.CLASSES
        if spec.classes is not None:
            try:
                return class_list(spec.classes, root, key)
            except InputError:
                continue
    return ()
