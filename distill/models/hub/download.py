"""Reading models of the Hub: a revision becomes one commit for a run, and its files lie in the
cache of huggingface_hub like an export.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distill.data.locks import locked
from distill.data.stream.failures import run_token
from distill.errors import InputError
from distill.files import atomic_write
from distill.models.hub.faults import read_fault
from distill.models.hub.licences import UNREADABLE, strictest
from distill.processes import several_processes
from distill.recipe.hub_names import HubModel, parse_hub_name

CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
# Read with the weights if they are there: our record, and the card with its licence.
RECORD_FILE = "distill.json"
_OPTIONAL_FILES = (RECORD_FILE, "README.md")
# Processes of one launch start within this time; a later launch may have the same token.
_SAME_LAUNCH_S = 600.0

# Of this process: name as asked for -> commit. A name is resolved once.
_commits: dict[str, str] = {}
_complete: set[Path] = set()


@dataclass(frozen=True)
class Snapshot:
    """A model at a commit, in a folder with config.json and weights.

    Attributes:
        model: pinned to the commit.
    """

    model: HubModel
    folder: Path


def pin_commits(commits: Mapping[str, str]) -> None:
    """Forgets what this process resolved, and makes these names mean these commits: a run that
    resumes keeps those that it began with.
    """
    _commits.clear()
    _commits.update(commits)


def pinned_commits() -> dict[str, str]:
    """Returns the commit of each name that this process has resolved."""
    return dict(_commits)


def fetch(name: str, key: str, *, again: bool = False) -> Snapshot:
    """Returns a model of the Hub, downloaded unless it is in the cache.

    The first call resolves the revision to a commit, for all processes of a launch on this machine;
    later calls have the same, so that all of a run has one.

    Args:
        name: hf://OWNER/NAME[@REVISION].
        key: the recipe key, option or argument that names it, for messages.
        again: resolve the revision again: this is no part of a run.

    Raises:
        InputError: no such model or revision, no permission, or no network.
    """
    model = _parsed(name, key)
    try:
        known = None if again else _commits.get(str(model))
        commit = known or _resolve_once(model)
        _commits[str(model)] = commit
        return Snapshot(model.at(commit), _download(model.repo, commit))
    except InputError:
        raise
    except Exception as error:  # of huggingface_hub, its HTTP library, or the disk
        raise read_fault(error, model, key) from error


def in_cache(name: str, key: str) -> Snapshot | None:
    """Returns a model of the Hub if all of it is in the cache, without a look at the network."""
    from huggingface_hub import try_to_load_from_cache

    model = _parsed(name, key)
    revision = _commits.get(str(model)) or model.revision
    config = try_to_load_from_cache(model.repo, CONFIG_FILE, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    if not any((folder / weights).is_file() for weights in WEIGHTS_FILES):
        return None
    return Snapshot(model.at(folder.name), folder)


def licence_in(folder: Path) -> str | None:
    """Returns the licence that a downloaded card states; of several, the first that limits what
    derives from the weights. None if it states none.
    """
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return UNREADABLE
    if not text.startswith("---\n"):
        return None
    try:
        values = yaml.safe_load(text.split("---\n", 2)[1]) or {}
        stated, name = values.get("license"), values.get("license_name")
    except (ValueError, AttributeError, yaml.YAMLError):
        return UNREADABLE
    if stated == "other" and isinstance(name, str) and name:
        stated = name
    if stated is None or stated == []:
        return None
    each = stated if isinstance(stated, list) else [stated]
    return strictest([one if isinstance(one, str) else UNREADABLE for one in each])


def recorded_licence(folder: Path) -> str | None:
    """Returns the licence of what an export derives from, its teachers and its first weights, as
    its distill.json states it; of several, the first that limits what derives from them.
    """
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        taught = [record.get("teacher") or {}, *(record.get("teachers") or {}).values()]
        stated = [*(each.get("license") for each in taught), record.get("began_with_license")]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        return UNREADABLE
    found = [one if isinstance(one, str) else UNREADABLE for one in stated if one is not None]
    return strictest(found) if found else None


def _parsed(name: str, key: str) -> HubModel:
    try:
        return parse_hub_name(name)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def _resolve_once(model: HubModel) -> str:
    """Returns the commit of a revision, the same in all processes of a launch on this machine."""
    if model.is_pinned:
        assert model.revision is not None
        return model.revision
    if not several_processes():
        return _resolve(model)
    from huggingface_hub import constants

    folder, run = Path(constants.HF_HUB_CACHE) / ".distill", run_token()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a cache that can only be read; training compares the commits of its processes
        return _resolve(model)
    question = json.dumps([constants.ENDPOINT, str(model), run])
    file = folder / f"{hashlib.sha256(question.encode()).hexdigest()[:24]}.json"
    with locked(file.with_suffix(".lock"), wait=True):
        _remove_old(folder)
        if file.is_file():
            return str(json.loads(file.read_text()))
        commit = _resolve(model)
        atomic_write(file, lambda opened: opened.write(json.dumps(commit).encode()))
    return commit


def _remove_old(folder: Path) -> None:
    for file in folder.glob("*.json"):
        with suppress(FileNotFoundError):  # another process removes them too
            if time.time() - file.stat().st_mtime > _SAME_LAUNCH_S:
                file.unlink()


def _resolve(model: HubModel) -> str:
    """Asks the Hub for the commit; offline, the cache says which it was when it was last asked."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model.repo, CONFIG_FILE, revision=model.revision)).parent.name


def _download(repo: str, commit: str) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = Path(hf_hub_download(repo, CONFIG_FILE, revision=commit)).parent
    if folder in _complete:
        return folder
    weights, *others = WEIGHTS_FILES
    try:
        hf_hub_download(repo, weights, revision=commit)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            raise
        for other in others:
            hf_hub_download(repo, other, revision=commit)
    for name in _OPTIONAL_FILES:
        if try_to_load_from_cache(repo, name, revision=commit) is not None:
            continue  # it is there, or known to be absent
        try:
            hf_hub_download(repo, name, revision=commit)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
                raise
    _complete.add(folder)
    return folder
