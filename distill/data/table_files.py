"""The files of a table: those of one split from a file, a folder or a pattern, and none that do not
belong to the data.
"""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

from distill.data.records import kind_of, missing
from distill.data.splits import choose_split, files_of_split
from distill.data.walk import files_below, matching_files
from distill.errors import InputError


def table_files(path: Path, kind: str, split: str | None, key: str) -> list[str]:
    """The files of a table, sorted.

    Args:
        path: a file, a folder or a pattern; a path that exists as written is not a pattern.
        kind: "parquet" or "arrow".
        split: None if all files are of one split.
        key: the section of the recipe, for messages.

    Raises:
        InputError: no files, or files of several splits and no split given.
    """
    if path.is_dir():
        found = [str(path / os.fsdecode(file)) for file in files_below(path, (f".{kind}",), key)]
        folder = str(path)
    elif path.exists():
        if not path.is_file():
            raise InputError(
                f"{key}.path: {path} is a {kind_of(path)}, not a file: name a file or a folder"
            )
        if split is not None:
            raise InputError(
                f"{key}.split: {path} is one file, which has no splits: set split to null"
            )
        return [str(path)]
    elif glob.has_magic(str(path)):
        found, folder = matching_files(str(path), key)
    else:
        raise missing(path, key)
    files = _saved_files([file for file in found if not _is_cache(file)])
    if not files and path.is_dir():
        raise InputError(
            f"{key}.path: {path} has no *.{kind} files: give their folder, or a pattern such as"
            f" {path}/train-*.{kind}"
        )
    if not files:
        raise InputError(f"{key}.path: no file matches {path}: correct the pattern")
    if kind == "arrow" and path.is_dir() and (path / "dataset_dict.json").is_file():
        return _of_saved_split(files, path, split, key)
    return files_of_split(files, folder, split, str(path), key)


def _is_cache(file: str) -> bool:
    """Whether `datasets` cached the file for a `map` or `filter`: it holds the same rows again."""
    return os.path.basename(file).startswith(("cache-", "tmp")) and file.endswith(".arrow")


def _saved_files(files: Sequence[str]) -> list[str]:
    """The files without those that a save_to_disk folder does not list as its own."""
    named: dict[str, set[str] | None] = {}
    for folder in {os.path.dirname(file) for file in files}:
        try:
            state = json.loads(Path(folder, "state.json").read_bytes())
            named[folder] = {str(each["filename"]) for each in state["_data_files"]}
        except (OSError, ValueError, LookupError, TypeError):
            named[folder] = None  # another folder
    return [
        file
        for file in files
        if (own := named[os.path.dirname(file)]) is None or os.path.basename(file) in own
    ]


def _of_saved_split(files: Sequence[str], path: Path, split: str | None, key: str) -> list[str]:
    """The files of a split of a saved DatasetDict, whose splits may have any names."""
    splits = list(dict.fromkeys(Path(os.path.relpath(file, path)).parts[0] for file in files))
    chosen = choose_split(split, splits, str(path), key)
    return [file for file in files if Path(os.path.relpath(file, path)).parts[0] == chosen]
