"""Publishing files on the Hub: one commit, which contains all of them or does not happen."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import InputError
from distill.files import sha256_of
from distill.models.hub.faults import is_network_error, reason_of, status_of, write_fault

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"


@dataclass(frozen=True)
class Target:
    """Where to publish.

    Attributes:
        branch: None for main.
        pull_request: propose the commit instead of making it.
        private: of a repository that is made for this.
    """

    repo: str
    branch: str | None = None
    pull_request: bool = False
    private: bool = False


@dataclass(frozen=True)
class Head:
    """A target before the commit.

    Attributes:
        exists: the repository.
        commit: on which the new commit is to be made; None if there is none.
        has_branch: the branch exists; otherwise it begins at `commit`.
    """

    exists: bool
    commit: str | None
    has_branch: bool


@dataclass(frozen=True)
class Uploaded:
    """A commit on the Hub. is_new: False if the repository had these files already."""

    commit: str
    url: str
    is_new: bool
    pull_request: str | None = None


def connect() -> "HfApi":
    """Return a client of the Hub that HF_ENDPOINT names."""
    from huggingface_hub import HfApi, constants

    return HfApi(endpoint=constants.ENDPOINT)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars, where nothing shows them or a screen is drawn."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def look_at(target: Target) -> Head:
    """Return the state of a target, after checking the token and its rights. Changes nothing.

    Raises:
        InputError: no token, or one that may not write there, no such repository for a pull
            request, or a public repository that was to be private.
    """
    from huggingface_hub import constants, errors, get_token

    if constants.HF_HUB_OFFLINE:
        raise write_fault(errors.OfflineModeIsEnabled(), target.repo)
    if get_token() is None:
        raise InputError(
            f"{target.repo}: publishing needs a token with write access: make one at"
            f" {constants.ENDPOINT}/settings/tokens, then run `hf auth login`, or set HF_TOKEN"
        )
    api = connect()
    try:
        _check_rights(api.whoami(), target)
        try:
            info = api.model_info(target.repo)
        except errors.RepositoryNotFoundError:
            if target.pull_request:
                raise
            return Head(exists=False, commit=None, has_branch=target.branch in (None, MAIN))
        if target.private and not info.private:
            raise InputError(
                f"{target.repo}: exists and is public, and should be private: change it at"
                f" {constants.ENDPOINT}/{target.repo}/settings, or leave out --private"
                " (log.publish.private: false)"
            )
        branches = {
            each.name: each.target_commit for each in api.list_repo_refs(target.repo).branches
        }
        branch = target.branch or MAIN
        start = branches.get(branch) or branches.get(MAIN)
        return Head(exists=True, commit=start, has_branch=branch in branches)
    except InputError:
        raise
    except Exception as error:  # of huggingface_hub and its HTTP library
        raise write_fault(error, target.repo) from error


def _check_rights(account: Mapping[str, object], target: Target) -> None:
    """Raise InputError if the Hub says that a token may not write."""
    access = account.get("auth")
    token = access.get("accessToken") if isinstance(access, Mapping) else None
    if isinstance(token, Mapping) and token.get("role") == "read":
        raise InputError(f"{target.repo}: your token may only read: use one with write access")
    organizations = account.get("orgs")
    listed = organizations if isinstance(organizations, Sequence) else ()
    owners = [str(account["name"]), *(str(each["name"]) for each in listed)]
    owner = target.repo.split("/")[0]
    if owner.lower() not in map(str.lower, owners) and not target.pull_request:
        raise InputError(
            f"{target.repo}: your token is that of {owners[0]}, who may not write for {owner}: use"
            f" {' or '.join(f'{each}/...' for each in owners[:4])}, or --pull-request"
        )


def files_at(target: Target, head: Head) -> list[str]:
    """Return the paths of all files in the repository."""
    if not head.exists:
        return []
    try:
        info = connect().model_info(target.repo, revision=head.commit)
    except Exception as error:  # of huggingface_hub and its HTTP library
        raise write_fault(error, target.repo) from error
    return [each.rfilename for each in info.siblings or ()]


def upload(
    target: Target,
    head: Head,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    delete: Sequence[str] = (),
    in_turn: bool = False,
) -> Uploaded:
    """Make one commit of all files. Other files of the repository stay.

    Args:
        head: what `look_at` returned: if the branch has moved since, nothing is changed.
        files: path in the repository -> content or file.
        delete: files of the repository that the commit removes; with a slash at the end, folders.
        in_turn: upload large files one after the other, in this thread.

    Raises:
        InputError: the upload was refused or interrupted. The repository is as before; a new one
            stays, without these files.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = connect()
    additions = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    deletions = [CommitOperationDelete(name) for name in delete]
    commit, then = head.commit, "nothing was changed"
    try:
        if not head.exists:
            # None is the default of the owner, which may be private.
            api.create_repo(target.repo, private=target.private or None)
            then = "the new repository is there, without these files"
            commit = api.model_info(target.repo).sha
        if not head.has_branch:
            assert target.branch is not None
            api.create_branch(target.repo, branch=target.branch, revision=commit)
            then = f"the new branch {target.branch} is there, without these files"
        # Several at once go through a pool of threads, which the end of the process waits for.
        for group in [[each] for each in additions] if in_turn else [additions]:
            api.preupload_lfs_files(
                target.repo,
                group,
                revision=target.branch,
                create_pr=target.pull_request,
                free_memory=False,
                gitignore_content="",  # or that of the repository would leave files out
            )
        # A private name, as there is no public one; None in a version without it.
        ignored = [each.path_in_repo for each in additions if getattr(each, "_should_ignore", None)]
        if ignored:
            raise InputError(
                f"{target.repo}: its .gitignore leaves out {', '.join(ignored)}: delete these lines"
                f" there; {then}"
            )
        made = api.create_commit(
            target.repo,
            [*additions, *deletions],
            commit_message=message,
            revision=target.branch,
            create_pr=target.pull_request,
            parent_commit=commit,
        )
        url, request = str(made.commit_url), made.pr_url
        return Uploaded(made.oid, url, made.oid != commit, request)
    except InputError:
        raise
    except Exception as error:  # of huggingface_hub and its HTTP library
        cause = _cause(error)
        unanswered = is_network_error(cause) or (status_of(cause) or 0) >= 500
        if unanswered and not target.pull_request:
            # The commit may have been made although its answer was lost.
            with suppress(Exception):
                if (now := _head_with(api, target, files)) is not None and now != commit:
                    url = f"{api.endpoint}/{target.repo}/commit/{now}"
                    return Uploaded(now, url, is_new=True)
        if isinstance(cause, ValueError) and status_of(cause) is None:
            raise InputError(
                f"{target.repo}: the Hub refuses the model card ({reason_of(cause)}); {then}"
            ) from error
        if unanswered:
            then += "; the same command finishes it"
        raise write_fault(cause, target.repo, then) from error


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong with a file, which huggingface_hub wraps in a RuntimeError."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _head_with(api: "HfApi", target: Target, files: Mapping[str, Path | bytes]) -> str | None:
    """Return the head of the branch if it has these files with these contents."""
    info = api.model_info(target.repo, revision=target.branch)
    found = {
        each.path: each for each in api.get_paths_info(target.repo, list(files), revision=info.sha)
    }
    for name, content in files.items():
        there = found.get(name)
        lfs = getattr(there, "lfs", None)
        if there is None or (lfs.sha256 if lfs else getattr(there, "blob_id", None)) != (
            content_sha256(content) if lfs else blob_id(content)
        ):
            return None
    return info.sha


def content_sha256(content: Path | bytes) -> str:
    """Return the SHA-256 of a content, by which the Hub names a large file."""
    if isinstance(content, Path):
        return sha256_of(content)
    return hashlib.sha256(content).hexdigest()


def blob_id(content: Path | bytes) -> str:
    """Return the name that git gives to a content."""
    read = content.read_bytes() if isinstance(content, Path) else content
    return hashlib.sha1(b"blob %d\0" % len(read) + read).hexdigest()
