"""The list of the files that a publication wrote, so that the next one deletes no other file."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.models.hub.commit import Head, Target, blob_id, connect, content_sha256, files_at
from distill.models.hub.faults import write_fault

LIST_FILE = "distill-files.json"


def list_files(files: Mapping[str, Path | bytes], names: Sequence[str]) -> bytes:
    """Return the content of distill-files.json: the SHA-256 of some files, and their names in git,
    by which the Hub names those that are not large.
    """
    listed = {
        name: {"sha256": content_sha256(files[name]), "blob_id": blob_id(files[name])}
        for name in names
        if name in files
    }
    return json.dumps({"format": 1, "files": listed}, indent=1, sort_keys=True).encode()


def written_before(target: Target, head: Head, names: Sequence[str]) -> dict[str, bool]:
    """Return those of some files that the repository has, and whether their content is what an
    earlier publication wrote, and not one that a user put there.

    Raises:
        InputError: the Hub does not answer.
    """
    there = files_at(target, head)
    found = {name: False for name in names if name in there}
    if not found or LIST_FILE not in there:
        return found
    try:
        api = connect()
        with tempfile.TemporaryDirectory(prefix="distill-list-") as cache:
            file = api.hf_hub_download(
                target.repo, LIST_FILE, revision=head.commit, cache_dir=cache
            )
            text = Path(file).read_bytes()
        infos = api.get_paths_info(target.repo, list(found), revision=head.commit)
    except Exception as error:  # of huggingface_hub and its HTTP library
        raise write_fault(error, target.repo) from error
    try:
        listed = json.loads(text)["files"]
        hashes = {name: (each["sha256"], each["blob_id"]) for name, each in listed.items()}
    except (ValueError, LookupError, TypeError, AttributeError):  # a user changed it
        return found
    for each in infos:
        lfs = getattr(each, "lfs", None)
        content = lfs.sha256 if lfs else getattr(each, "blob_id", None)
        found[each.path] = content in hashes.get(each.path, ())
    return found
