"""Guesses which kind of data a path on the command line names: the `kind` of a recipe, from the
files that are there.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from distill.data.folder import IMAGE_EXTENSIONS
from distill.data.label_sets import NAMES
from distill.data.records import at, is_leftover, literal_start, read_regular
from distill.data.stream.manifest import MANIFEST_FILE
from distill.data.stream.names import COMPRESSED
from distill.errors import InputError, did_you_mean
from distill.recipe import schema

_ANY_SOURCE: TypeAdapter[schema.SourceSpec] = TypeAdapter(schema.SourceSpec)
_FASHION_MNIST = "fashion_mnist"
_FASHION_MNIST_SPLITS = ("train", "test")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_SHARD_KINDS = ("tar", "parquet", "arrow")
_ONLY_IN_RECIPES = ("image_column", "label_column", "image", "label")
_TARS = (".tar", *COMPRESSED)  # a stream refuses the compressed ones with a message


def guess_source(
    path: str,
    classes: str | None = None,
    *,
    split: str | None = None,
    default_split: str = "test",
    labelled: bool = True,
    option: str = "--data",
) -> schema.SourceSpec:
    """The source that a path names.

    A stream: a URL (https://, s3://, hf://), *.tar, names in braces, a folder of tar files (below
    subfolders too) or one that `distill data shard` wrote. Else a saved data set, Arrow or Parquet
    files, Fashion-MNIST (by its name or its IDX files), or an image folder.

    Args:
        classes: a file of class names, or a label space.
        split: for kinds that have splits; where there are several and none is given, opening the
            source refuses and lists them.
        default_split: of Fashion-MNIST, whose splits are known.
        labelled: False takes images without labels, from a stream or Parquet.
        option: what the path is called on the command line, for messages.

    Raises:
        InputError: nothing is there, several kinds are, or it has no splits and one is given.
    """
    spec: dict[str, Any] = {"path": path, "classes": classes}
    kind = _kind(path, option)
    if kind == "fashion_mnist":
        name, _, own_split = (
            path.partition(":") if path.startswith(_FASHION_MNIST) else ("", "", "")
        )
        if own_split and split not in (None, own_split):
            raise InputError(
                f"{option} {path} names split {own_split}, and --split {split}: leave one out"
            )
        chosen = own_split or split or default_split
        if chosen not in _FASHION_MNIST_SPLITS:
            raise InputError(
                f"{option} {path}: Fashion-MNIST has no split {chosen!r}: it has train and test"
            )
        return _ANY_SOURCE.validate_python(
            {"kind": kind, "split": chosen, "path": None if name else path}
        )
    if kind == "parquet" and not labelled:
        kind = "stream"  # a table wants its label column
    if kind == "stream":
        spec |= {"split": split, "labelled": labelled}
    elif kind != "image_folder":
        spec |= {"split": split}
    elif split is not None:
        raise InputError(
            f"--split {split}: {path} ({kind}) has no splits; leave it out, or give the split's own"
            " path"
        )
    return _ANY_SOURCE.validate_python({"kind": kind, **spec})


def _kind(path: str, option: str) -> str:
    if not path:
        raise InputError(f"{option}: the path is empty: name a file, a folder or a URL")
    place = at(Path(), path, option)
    if re.fullmatch(rf"{_FASHION_MNIST}(:\w*)?", path) and not place.exists():
        return "fashion_mnist"
    braces = re.search(r"\{.*\}", literal_start(str(place))[1])
    if _SCHEME.match(path) or braces or path.lower().endswith(_TARS):
        if (
            not _SCHEME.match(path)
            and path.lower().endswith(_TARS)
            and not re.search(r"[*?\[{]", path)
            and not place.exists()
        ):
            raise _missing(place, option)
        return "stream"
    if not place.exists() and not re.search(r"[*?\[]", path):
        raise _missing(place, option)
    if any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return "saved"
    found = [
        kind
        for kind in _SHARD_KINDS
        if path.lower().endswith(f".{kind}") or _holds(place, f".{kind}")
    ]
    if len(found) > 1:
        several = " and ".join(f"*.{kind}" for kind in found)
        raise InputError(
            f"{option} {path}: holds {several}: say which with a pattern, such as"
            f" '{path}/*.{found[0]}'"
        )
    if found and (found == ["tar"] or _is_ours(place / MANIFEST_FILE)):
        return "stream"
    if found:
        return found[0]
    if any((place / f"t10k-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz")):
        return "fashion_mnist"
    return _kind_of_first(place)


def _holds(folder: Path, ending: str) -> bool:
    return folder.is_dir() and any(
        entry.name.lower().endswith(ending) for entry in os.scandir(folder)
    )


def _kind_of_first(folder: Path) -> str:
    """The kind of a folder's first file that has one, below subfolders too. Does not walk on
    through a million images.
    """
    for _, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not is_leftover(name))
        for name in sorted(files):
            if name.lower().endswith(_TARS):
                return "stream"
            extension = os.path.splitext(name)[1].lower()
            if extension in IMAGE_EXTENSIONS:
                return "image_folder"
            if extension in (".parquet", ".arrow"):
                return extension.removeprefix(".")
    return "image_folder"


def _is_ours(manifest: Path) -> bool:
    """Whether a manifest.json is one of shards; a damaged one is reported when it is read."""
    try:
        record = json.loads(read_regular(manifest))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True
    return isinstance(record, dict) and "shards" in record


def _missing(place: Path, option: str) -> InputError:
    near = (
        did_you_mean(place.name, [each.name for each in place.parent.iterdir()])
        if place.parent.is_dir()
        else ""
    )
    return InputError(f"{option} {place}: there is no such file or folder{near}")


def in_options(message: str, option: str) -> str:
    """Rephrase a message about a recipe's keys in terms of the command line.

    Args:
        option: the option or argument that names the source, also the key it was opened under.
    """
    for key, name in {
        f"{option}.path": option,
        f"{option}.classes": "--classes",
        f"{option}.split": "--split",
        ", absolute or relative to data.root": "",
        "set data.unreadable to skip": "give --unreadable skip",
        "set split to null": "leave out --split",
    }.items():
        message = message.replace(key, name)
    return _with_keys_of_recipes(message, option)


def _with_keys_of_recipes(message: str, option: str) -> str:
    """Add to a message about a key that no option sets that only recipes have it."""
    for setting in _ONLY_IN_RECIPES:
        key = f"{option}.{setting}:"
        if key in message or (f"`{setting}`" in message and option in message):
            message = message.replace(key, f"{option}:")
            return f"{message} (only recipes have the key {setting}; {option} uses its default)"
    return message


def known_classes(classes: str | None) -> str | None:
    """Resolve `--classes`: a file of class names, or a label space such as imagenet-1k.

    Raises:
        InputError: neither.
    """
    if classes is not None and not Path(classes).expanduser().is_file() and classes not in NAMES:
        raise InputError(
            f"--classes {classes}: neither a file nor a label set{did_you_mean(classes, NAMES)}:"
            f" give a file, a class name a line, or one of {', '.join(NAMES)}"
        )
    return classes
