"""Data sets of the Hub: which files make a split, in which commit, through `datasets`."""

import hashlib
import json
import posixpath
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.data.records import first_line
from distill.data.splits import choose_split, refuse_several
from distill.data.stream.cache import ShardCache
from distill.data.stream.failures import run_token
from distill.data.stream.names import expand_braces
from distill.errors import InputError

# A requeued job may have the token of its previous run: older answers are not reused.
_REUSE_S = 600.0


@dataclass(frozen=True)
class HubFile:
    """url: hf://datasets/OWNER/NAME@COMMIT/FILE. name: FILE. size_bytes, sha256: as stored on the
    Hub.
    """

    url: str
    name: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class HubFiles:
    """root: the repository at its commit. classes: the names of the label's ClassLabel, if the
    repository has one.
    """

    root: str
    files: tuple[HubFile, ...]
    classes: tuple[str, ...] | None


def list_hub_once(
    path: str, split: str | None, label: str | None, key: str, cache: ShardCache
) -> HubFiles:
    """Call `list_hub` in one process of a run on each machine; the others wait for its answer, so
    that all use the same commit.

    Raises:
        InputError: as `list_hub`, also from the process that was waited for.
    """
    from huggingface_hub import constants

    run = run_token()
    question = json.dumps([constants.ENDPOINT, path, split, label])
    name = f"hub-{hashlib.sha256(question.encode()).hexdigest()[:24]}"
    listed: list[HubFiles] = []

    def make(file: Path) -> None:
        listed.append(list_hub(path, split, label, key))
        file.write_text(json.dumps({"run": run, "time": time.time(), **asdict(listed[0])}))

    cached = _cached(cache.file(name, make), run)
    if cached is None and not listed:  # of another run
        cache.drop(name)
        cached = _cached(cache.file(name, make), run)
    return listed[0] if listed else cached or list_hub(path, split, label, key)


def _cached(file: Path, run: str) -> HubFiles | None:
    """The recent answer that another process of this run has stored, or None."""
    try:
        record = json.loads(file.read_text())
        if record["run"] != run or not 0 <= time.time() - record["time"] < _REUSE_S:
            return None
        classes = None if record["classes"] is None else tuple(map(str, record["classes"]))
        return HubFiles(
            str(record["root"]), tuple(HubFile(**each) for each in record["files"]), classes
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def list_hub(path: str, split: str | None, label: str | None, key: str) -> HubFiles:
    """The files of a split, pinned to the current commit.

    Args:
        path: hf://datasets/OWNER/NAME[@REVISION][/PATTERN of files].
        split: None if there is only one, or with a pattern.
        label: the column or member of the labels; if None, label or cls.
        key: the recipe key, for messages.

    Raises:
        InputError: no such repository, revision, split or files; a gated repository, or a Hub that
            cannot be reached.
    """
    import datasets

    repo, revision, pattern = parse_hub_path(path, key)
    if pattern and split is not None:
        raise InputError(
            f"{key}.split: {path} names files, which have no splits: set split to null"
        )
    builder = _builder(repo, revision, pattern, path, key)
    data_files = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    urls = [str(url) for url in data_files[choose_split(split, list(data_files), path, key)]]
    root = re.match(r"hf://datasets/[^/]+/[^/@]+@[^/]+", urls[0])
    assert root is not None, urls[0]
    names = [url.removeprefix(f"{root[0]}/") for url in urls]
    if len(data_files) == 1:  # a pattern's, or files whose names `datasets` sees no split in
        refuse_several(
            names, path, f"{key}.path", f"name the files of one, as in {path}/train-*.tar"
        )
    stored = _stored(repo, root[0].rpartition("@")[2], names, path, key)
    files = tuple(
        HubFile(url, name, *stored.get(name, (None, None)))
        for url, name in zip(urls, names, strict=True)
    )
    features = builder.info.features or {}
    feature = next(
        (features[name] for name in ([label] if label else ["label", "cls"]) if name in features),
        None,
    )
    return HubFiles(
        root[0], files, tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    )


def parse_hub_path(path: str, key: str) -> tuple[str, str | None, str | None]:
    """(OWNER/NAME, revision, pattern of files) of hf://datasets/OWNER/NAME[@REVISION][/PATTERN]."""
    parts = re.fullmatch(
        r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.+))?",
        path.rstrip("/"),
    )
    if parts is None:
        raise InputError(
            f"{key}.path: {path}: data sets of the Hub are hf://datasets/OWNER/NAME, with @REVISION"
            " or /PATTERN behind"
        )
    repo, revision, pattern = parts.groups()
    return repo, revision.replace("%2F", "/") if revision else None, pattern


def _builder(repo: str, revision: str | None, pattern: str | None, path: str, key: str) -> Any:
    import datasets

    page = f"{datasets.config.HF_ENDPOINT}/datasets/{repo}"
    try:
        return datasets.load_dataset_builder(
            repo, revision=revision, data_files=None if pattern is None else expand_braces(pattern)
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        reason = first_line(error)
        if "gated" in reason:
            fix = f"accept the terms at {page}, then run `hf auth login`, or set HF_TOKEN"
        elif "Revision" in reason:
            fix = f"choose a branch, tag or commit of {page}"
        else:
            fix = "fix the name; for a private repository run `hf auth login`, or set HF_TOKEN"
        raise InputError(f"{key}.path: {path}: {reason.rstrip('.')}: {fix}") from error
    except (
        FileNotFoundError,
        datasets.exceptions.DatasetsError,
    ) as error:  # no files that it knows, or of the pattern
        raise InputError(
            f"{key}.path: {path}: {first_line(error)}: give a pattern of its files, as in"
            f" {path}/*.tar"
        ) from error
    except OSError as error:
        raise InputError(
            f"{key}.path: {path}: {first_line(error)}: fix the way to the Hub (HF_ENDPOINT,"
            " HF_HUB_OFFLINE, proxies), or copy the shards here"
        ) from error
    except (ValueError, RuntimeError) as error:  # several configurations; a script
        raise InputError(
            f"{key}.path: {path}: {first_line(error)}: name the files, as in"
            f" {path}/FOLDER/*.parquet"
        ) from error


def _stored(
    repo: str, commit: str, names: list[str], path: str, key: str
) -> dict[str, tuple[int, str | None]]:
    """name -> (bytes, SHA-256) of the files that the Hub stores as large files."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    folder = posixpath.commonpath([posixpath.dirname(name) for name in names])
    try:
        tree = HfApi().list_repo_tree(
            repo, folder or None, recursive=True, revision=commit, repo_type="dataset"
        )
        files = [info for info in tree if isinstance(info, RepoFile)]
    except (
        Exception
    ) as error:  # the errors of its HTTP library, which is another one in other versions
        raise InputError(
            f"{key}.path: {path}: the Hub does not list its files ({first_line(error)}): try again"
            " later"
        ) from error
    return {file.path: (file.size, None if file.lfs is None else file.lfs.sha256) for file in files}
