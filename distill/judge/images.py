"""The images to judge on, as a command line names them."""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from timm.data import ImageNetInfo

from distill.data.sources import Source, open_source
from distill.errors import InputError
from distill.recipe import Recipe, schema

_ANY_SOURCE: TypeAdapter[schema.Source] = TypeAdapter(schema.Source)

# What messages of the data room call by its key in a recipe has another name on the command line.
_OPTIONS = {
    "--data.path": "--data",
    "--data.classes": "--classes",
    ", absolute or relative to data.root": "",
    "set data.unreadable to skip": "give --unreadable skip",
}


def open_images(data: str | None, classes: str | None, recipe: Recipe | None, path: Path) -> Source:
    """The source that `--data` and `--classes` name, or else the recipe's own evaluation set.

    Args:
        path: what is judged, for messages.

    Raises:
        InputError: nothing is there, or nobody says what to judge on.
    """
    if data is not None:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                return open_source(guess_source(data, _class_list(classes, Path(scratch))), Path(), "--data")
            except InputError as error:
                raise InputError(as_options(str(error))) from error
    if classes is not None:
        raise InputError("--classes names the classes of --data: give both")
    if recipe is None or recipe.data.eval is None:
        raise InputError(f"{path} does not say what to judge it on: give --data")
    try:
        return open_source(recipe.data.eval, Path(recipe.data.root), "data.eval")
    except InputError as error:
        raise InputError(f"{error}; or judge on something else with --data") from error


def as_options(message: str) -> str:
    """A message in the words of the command line."""
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message


def guess_source(path: str, classes: str | None) -> schema.Source:
    """The kind of data that lies at a path.

    Raises:
        InputError: nothing is there.
    """
    place = Path(path)
    spec: dict[str, Any] = {"path": path, "classes": classes}
    if path == "fashion_mnist":
        spec = {"kind": "fashion_mnist", "split": "test"}
    elif not place.exists() and "*" not in path:
        raise InputError(f"--data {path}: there is no such file or folder")
    elif any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        spec |= {"kind": "saved", **({"split": "test"} if (place / "dataset_dict.json").is_file() else {})}
    elif path.endswith(".arrow") or any(place.glob("*.arrow")):
        spec |= {"kind": "arrow"}
    elif path.endswith(".parquet") or any(place.glob("*.parquet")):
        spec |= {"kind": "parquet"}
    elif any((place / f"t10k-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz")):
        spec = {"kind": "fashion_mnist", "split": "test", "path": path}
    else:
        spec |= {"kind": "image_folder"}
    return _ANY_SOURCE.validate_python(spec)


def _class_list(classes: str | None, scratch: Path) -> str | None:
    """A file of class names; "imagenet-1k" and timm's other label sets are written to one."""
    if classes is None or Path(classes).is_file():
        return classes
    try:
        names = ImageNetInfo(classes).label_names()
    except (AssertionError, FileNotFoundError, KeyError) as error:
        raise InputError(
            f"--classes {classes}: neither a file nor a label set of timm's such as imagenet-1k"
        ) from error
    (scratch / "classes.txt").write_text("\n".join(names))
    return str(scratch / "classes.txt")
