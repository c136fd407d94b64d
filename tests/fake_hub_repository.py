"""Repositories of the fake Hub, in memory: commits are immutable, branches name one of them."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import yaml

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs -text\n"
_LARGE_BYTES = 10 * 2**20
# Some of the ids that the Hub knows.
_LICENCES = frozenset(
    {
        "apache-2.0",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc0-1.0",
        "mit",
        "other",
        "unknown",
    }
)


class RefusedError(Exception):
    """The Hub refuses a request, with this status, message and code for X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Account:
    """A user behind a token. role: of the token, "write" or "read"."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organizations)

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "user",
            "name": self.name,
            "orgs": [{"name": name, "type": "org"} for name in self.organizations],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "test", "role": self.role},
            },
        }


@dataclass(frozen=True)
class File:
    """A file of a commit. lfs: it is stored as a large file, named by its SHA-256."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """What git names the file by; for a large file, the file that points at it."""
        content = self.content
        if self.lfs:
            content = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{self.sha256}\nsize {len(self.content)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def as_dict(self, path: str) -> dict[str, Any]:
        known = {
            "type": "file",
            "path": path,
            "oid": self.blob_id,
            "size": len(self.content),
        }
        if self.lfs:
            known["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return known


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: Mapping[str, File]


@dataclass
class Repository:
    """A model repository. `objects` are large files that were uploaded, by SHA-256, whether a
    commit names them or not.
    """

    repo_id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.branches:
            first = self._store(None, "initial commit", {".gitattributes": File(GIT_ATTRIBUTES)})
            self.branches["main"] = first.oid

    def head(self, branch: str = "main") -> Commit:
        return self.commits[self.branches[branch]]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The contents of a revision, by path."""
        return {path: file.content for path, file in self.at(revision).files.items()}

    def titles(self, branch: str = "main") -> list[str]:
        """The titles of a branch's commits, newest first."""
        found, commit = [], self.branches.get(branch)
        while commit is not None:
            found.append(self.commits[commit].title)
            commit = self.commits[commit].parent
        return found

    def at(self, revision: str) -> Commit:
        for names in (self.branches, self.tags, self.pulls):
            if revision in names:
                return self.commits[names[revision]]
        if revision in self.commits:
            return self.commits[revision]
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, files: Mapping[str, bytes], title: str = "by hand", branch: str = "main") -> str:
        """Commits files, as another client would. Returns the commit."""
        head = self.head(branch)
        new = {path: File(content, self.is_large(path, content)) for path, content in files.items()}
        commit = self._store(head.oid, title, {**head.files, **new})
        self.branches[branch] = commit.oid
        return commit.oid

    def is_large(self, path: str, sample: bytes, size: int | None = None) -> bool:
        """Whether a file is stored as a large one: by its name, its size, or as it is binary."""
        patterns = [
            line.split()[0]
            for line in self.head().files[".gitattributes"].content.decode().splitlines()
        ]
        if any(fnmatchcase(path.rpartition("/")[2], pattern) for pattern in patterns):
            return True
        return (len(sample) if size is None else size) > _LARGE_BYTES or b"\0" in sample

    def commit(
        self, revision: str, lines: Iterable[Mapping[str, Any]], *, pull_request: bool
    ) -> tuple[Commit, str | None]:
        """Carries out the lines of a commit request, all or none.

        Returns:
            The commit, and the reference of the pull request, if one was asked for.
        """
        base = self.at(revision)
        if not pull_request and revision not in self.branches and revision not in self.pulls:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header: Mapping[str, Any] = {}
        files = dict(base.files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = File(_decoded(value))
                case "lfsFile":
                    if value["oid"] not in self.objects:
                        raise RefusedError(
                            400, f"LFS pointer pointed to a file that does not exist: {value}"
                        )
                    files[value["path"]] = File(self.objects[value["oid"]], lfs=True)
                case "deletedFile":
                    if value["path"] not in files:
                        raise RefusedError(
                            404, "A file with this name doesn't exist", "EntryNotFound"
                        )
                    del files[value["path"]]
                case "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {p: f for p, f in files.items() if not p.startswith(prefix)}
                case other:
                    raise RefusedError(400, f"unknown key {other!r}")
        if not header.get("summary"):
            raise RefusedError(400, "the commit has no summary")
        parent = header.get("parentCommit")
        if pull_request:
            base = self.at(parent) if parent else base
        elif parent is not None and parent != base.oid:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        made = self._store(base.oid, header["summary"], files)
        if pull_request:
            reference = f"refs/pr/{len(self.pulls) + 1}"
            self.pulls[reference] = made.oid
            return made, reference
        (self.branches if revision in self.branches else self.pulls)[revision] = made.oid
        return made, None

    def _store(self, parent: str | None, title: str, files: Mapping[str, File]) -> Commit:
        text = repr((self.repo_id, parent, title, sorted((p, f.etag) for p, f in files.items())))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(files))
        self.objects |= {file.sha256: file.content for file in files.values() if file.lfs}
        return self.commits[oid]


def _decoded(value: Mapping[str, Any]) -> bytes:
    if value.get("encoding") == "base64":
        return base64.b64decode(value["content"])
    return str(value["content"]).encode()


def card_problems(content: str) -> list[str]:
    """What the Hub finds wrong in the metadata of a model card, a sentence each."""
    front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if front is None:
        return []
    try:
        values = yaml.safe_load(front[1])
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(values, dict):
        return ["the metadata is no mapping"]
    found = []
    if (licence := values.get("license")) is not None and licence not in _LICENCES:
        found.append(f'"license" must be one of {", ".join(sorted(_LICENCES))}')
    for model in values.get("model-index", []):
        for result in model.get("results", []):
            if not {"task", "dataset", "metrics"} <= result.keys():
                found.append('"model-index[0].results[0]" lacks task, dataset or metrics')
            elif not {"name", "type"} <= result["dataset"].keys():
                found.append('"model-index[0].results[0].dataset" lacks name or type')
    return found
