"""Names of models on the Hugging Face Hub: hf://OWNER/NAME, with @REVISION behind if wanted."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from distill.errors import InputError, printable

# pathlib.Path makes "hf:/" of "hf://"; "hf-hub:" is how timm writes it.
_PREFIX = re.compile(r"hf:/{1,2}|hf[-_]hub:")
_OWNER_OR_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_NO_REVISION = re.compile(r"[\s?#\x00-\x1f]|\.\.|^[./-]|[./]$|//")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A model repository. revision: a branch, tag or commit; None for the branch main."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> "HubModel":
        """Returns the model at a commit."""
        return HubModel(self.repo, commit)


def is_hub_name(text: str) -> bool:
    """Returns whether a text names a model of the Hub rather than a path."""
    return _PREFIX.match(text) is not None


def parse_hub_name(text: str) -> HubModel:
    """Returns the model that hf://OWNER/NAME[@REVISION] or timm's hf-hub:OWNER/NAME names.

    Raises:
        InputError: the name is not allowed.
    """
    rest = _PREFIX.sub("", text, count=1)
    shown = printable(f"hf://{rest}" if text.startswith("hf:") else text)
    repo, at, revision = rest.rstrip("/").partition("@")
    if repo.startswith(("datasets/", "spaces/")):
        raise InputError(f"{shown}: is no model: a model of the Hub is hf://OWNER/NAME")
    if at and not revision:
        raise InputError(f"{shown}: no revision after the @: leave it out, or name a branch")
    if revision and _NO_REVISION.search(revision):
        raise InputError(f"{shown}: {printable(revision)!r} is not the name of a revision")
    check_repo_name(repo, shown)
    return HubModel(repo, revision.replace("%2F", "/") or None)


def check_repo_name(repo: str, what: str) -> None:
    """Checks the name of a repository, by the Hub's rules.

    Args:
        what: the key, option or name that it comes from, for messages.

    Raises:
        InputError: it is not OWNER/NAME, or has a character that the Hub refuses.
    """
    parts = repo.split("/")
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{what}: should be OWNER/NAME, the name of a user or organization first")
    for part in parts:
        if not _OWNER_OR_NAME.fullmatch(part) or "--" in part or ".." in part:
            raise InputError(
                f"{what}: {printable(part)!r} is not a name that the Hub allows: use up to 96"
                " letters, digits, - _ and ., without -- or .., and no - or . at its ends"
            )
    if parts[1].endswith((".git", ".ipynb")):
        raise InputError(f"{what}: the Hub allows no name that ends in .git or .ipynb")


def check_branch(branch: str, what: str) -> None:
    """Checks the name of a branch to commit to.

    Args:
        what: the key or option that it comes from, for messages.

    Raises:
        InputError: it is not the name of a revision, or it is a commit or a reference.
    """
    shown = f"{what}: {printable(branch)!r}"
    if not branch or _NO_REVISION.search(branch):
        raise InputError(f"{shown} is not the name of a branch: use a name such as main")
    if branch.startswith("refs/"):
        raise InputError(f"{shown} is a reference: give the name of a branch, without refs/")
    if _COMMIT.fullmatch(branch):
        raise InputError(f"{shown} is a commit, which never changes: give the name of a branch")


def _repo_name(text: str) -> str:
    check_repo_name(text, printable(text))
    return text


def _weights(text: str) -> str:
    if is_hub_name(text):
        parse_hub_name(text)
    return text


def _resume(text: str) -> str:
    if is_hub_name(text):
        parse_hub_name(text)
    elif text not in ("auto", "never"):
        raise ValueError("should be auto, never or hf://OWNER/NAME")
    return text


# An InputError is a ValueError, which pydantic reports under the key.
RepoName = Annotated[str, AfterValidator(_repo_name)]
Resume = Annotated[str, AfterValidator(_resume)]
Weights = Annotated[str, AfterValidator(_weights)]
