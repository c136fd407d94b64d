"""The names of shards: written in braces, matched by patterns, of a split, of a container."""

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from distill.data.records import first_line, missing
from distill.data.stream.localise import Container
from distill.errors import InputError, nearest
from distill.recipe import schema

EXTENSIONS: dict[Container, str] = {"tar": ".tar", "parquet": ".parquet"}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.zstd", ".tar.lz4")
_SPLIT_NAMES = ("train", "validation", "valid", "val", "test")


def expand_braces(path: str) -> list[str]:
    """Names in braces written out: train-{0000..0127}.tar, {train,extra}.tar, and several of them in one path."""
    parts: list[list[str]] = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", path)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if i % 2 == 0:
            parts.append([part])
        elif numbers:
            first, last = numbers.groups()
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            parts.append([f"{n:0{width}d}" for n in range(int(first), int(last) + 1)])
        else:
            parts.append(part.split(","))
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def names_files(place: str) -> bool:
    """Whether a path says files, by a pattern, braces or an extension, rather than a folder."""
    if "://" not in place:
        pattern = "{" in place or glob.has_magic(place) or place.endswith((*EXTENSIONS.values(), *COMPRESSED))
        return pattern and not Path(place).is_dir()
    plain = place.partition("?")[0]
    return any(sign in plain for sign in "{*[") or plain.endswith((*EXTENSIONS.values(), *COMPRESSED))


def named_files(place: str, key: str) -> list[str]:
    files = expand_braces(place)
    if place.startswith(("http://", "https://")):
        if "*" in place:
            raise InputError(
                f"{key}.path: {place}: a web server does not list its files: name them in braces, as in train-{{0000..0127}}.tar, "
                "or give a folder with the manifest of distill data shard"
            )
    elif any(glob.has_magic(file) for file in files):
        files = [found for pattern in files for found in sorted(matching(pattern, key))]
    if not files:
        raise InputError(f"{key}.path: no file matches {place}: mend the pattern")
    if len(set(files)) != len(files):
        twice = next(name for name, again in itertools.pairwise(sorted(files)) if name == again)
        raise InputError(f"{key}.path: {place} names {twice} twice: each shard is given once")
    absent = [file for file in files if "://" not in file and not Path(file).is_file()]
    if absent:
        if len(files) == 1:
            raise missing(Path(absent[0]), key)
        raise InputError(
            f"{key}.path: {len(absent)} of {len(files)} files do not exist, the first of them {absent[0]}: mend the pattern"
        )
    return files


def matching(pattern: str, key: str) -> list[str]:
    scheme, separator, _ = pattern.partition("://")
    if not separator:
        return [name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
    import fsspec  # type: ignore[import-untyped]

    try:
        found = fsspec.filesystem(scheme).glob(pattern)
    except (ImportError, ValueError) as error:
        raise InputError(f"{key}.path: {pattern}: {first_line(error)}: install what opens {scheme}://") from error
    except OSError as error:
        raise InputError(
            f"{key}.path: {pattern} cannot be listed ({type(error).__name__}: {first_line(error)})"
        ) from error
    return [name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in found]


def container_of(spec: schema.Stream, names: Sequence[str], key: str) -> Container:
    packed = next((name for name in names if name.endswith(COMPRESSED)), None)
    if packed is not None:
        raise InputError(
            f"{key}.path: {packed} is compressed, and a stream reads samples by offset: unpack the shards to plain .tar files "
            "(images are compressed already), or write them again with distill data shard"
        )
    if spec.container is not None:
        return spec.container
    kinds = {next((kind for kind, end in EXTENSIONS.items() if name.endswith(end)), None) for name in names}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        odd = next((name for name in names if not name.endswith(tuple(EXTENSIONS.values()))), None)
        what = "there are tar and Parquet files" if odd is None else f"{odd} is neither .tar nor .parquet"
        raise InputError(f"{key}.container: {what}: set container to tar or parquet, and path to files of that form")
    return kind


def of_split(files: list[str], folder: str, split: str | None, key: str) -> list[str]:
    """The files of a split, told by the first word of a file's or folder's name."""

    def words(file: str) -> set[str]:
        return {re.split(r"[-_.]", part)[0] for part in file.removeprefix(folder).strip("/").split("/")}

    if split is None:
        here = [name for name in _SPLIT_NAMES if any(name in words(file) for file in files)]
        if len(here) > 1:
            raise InputError(f"{key}.split: {folder} has files of {', '.join(here)}: choose one")
        return files
    chosen = [file for file in files if split in words(file)]
    if not chosen:
        known = sorted(set().union(*map(words, files)))[:20]
        raise InputError(
            f"{key}.split: no file in {folder} begins with {split!r}{nearest(split, known)}: set split to null, or path to a pattern"
        )
    return chosen


def choose_split(split: str | None, known: Sequence[str], where: str, key: str) -> str:
    """The split asked for, or the only one.

    Raises:
        InputError: there is no such split, or there are several and none is asked for.
    """
    if split is None and len(known) == 1:
        return known[0]
    if split is None or split not in known:
        have = ", ".join(map(repr, known))
        asked = (
            f"{where} has several splits" if split is None else f"{where} has no split {split!r}{nearest(split, known)}"
        )
        raise InputError(f"{key}.split: {asked}: choose one of {have}")
    return split
