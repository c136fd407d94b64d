"""What the fake Hub answers: one function for each kind of request."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fake_hub_repository import Account, File, RefusedError, Repository, card_problems
from server_faults import Reply

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")


@dataclass
class Hub:
    """Everything that the Hub stores. `cdn` is where large files are read. keeps_gitignore: a
    .gitignore of the repository counts whatever the client sends.
    """

    url: str
    cdn: str
    accounts: dict[str, Account] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    keeps_gitignore: bool = False


@dataclass(frozen=True)
class _Question:
    hub: Hub
    parts: tuple[str, ...]  # of the path, where the route names them
    query: dict[str, list[str]]
    body: bytes
    headers: Mapping[str, str]
    command: str

    @property
    def account(self) -> Account | None:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.accounts:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.hub.accounts[token] if token else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def repository(self) -> Repository:
        """The repository that the first two parts name, if the account may read it."""
        repo_id, account = "/".join(self.parts[:2]), self.account
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and not (account and account.owns(repo_id))):
            status = 404 if account else 401
            message = "Repository not found" if account else "Invalid username or password."
            raise RefusedError(status, message, "RepoNotFound")
        return found

    def to_write(self) -> Repository:
        """The same, if the account may write to it."""
        found, account = self.repository(), self.account
        if account is None:
            raise RefusedError(401, "Invalid username or password.")
        if not account.owns(found.repo_id) or account.role != "write":
            raise RefusedError(
                403, f"You don't have the rights to write to this repository {found.repo_id}"
            )
        return found

    @property
    def pull_request(self) -> bool:
        return self.query.get("create_pr") == ["1"]

    def to_commit(self) -> Repository:
        """The same, or if a pull request is asked for, any that a user may read."""
        if not self.pull_request:
            return self.to_write()
        if self.account is None:
            raise RefusedError(401, "Invalid username or password.")
        return self.repository()


def _json(content: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(
        json.dumps(content).encode(), status, {"Content-Type": "application/json", **headers}
    )


def _whoami(question: _Question) -> Reply:
    if question.account is None:
        raise RefusedError(401, "Invalid username or password.")
    return _json(question.account.as_dict())


def _create(question: _Question) -> Reply:
    account, values = question.account, question.json
    if account is None:
        raise RefusedError(401, "Invalid username or password.")
    repo_id = f"{values.get('organization') or account.name}/{values['name']}"
    if not account.owns(repo_id) or account.role != "write":
        namespace = repo_id.split("/")[0]
        raise RefusedError(
            403, f"You don't have the rights to create a model under the namespace {namespace!r}"
        )
    if not _NAME.fullmatch(values["name"]):
        raise RefusedError(400, f"Invalid repo name: {values['name']}")
    place = {"url": f"{question.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
    if repo_id in question.hub.repositories:
        return _json({"error": "You already created this model repo", **place}, 409)
    private = values.get("private") is True or values.get("visibility") == "private"
    question.hub.repositories[repo_id] = Repository(repo_id, private=private)
    return _json(place)


def _validate(question: _Question) -> Reply:
    errors = [{"message": problem} for problem in card_problems(question.json["content"])]
    return _json({"errors": errors, "warnings": []}, 400 if errors else 200)


def _preupload(question: _Question) -> Reply:
    repository = question.to_commit()
    there = repository.at(question.parts[2]).files
    answers = []
    # The .gitignore that the client sends counts in place of the one that is there.
    ignore = question.json.get("gitIgnore")
    if ignore is None or question.hub.keeps_gitignore:
        ignore = there[".gitignore"].content.decode() if ".gitignore" in there else ""
    patterns = ignore.split()
    for file in question.json["files"]:
        path = file["path"]
        sample = base64.b64decode(file["sample"])
        mode = "lfs" if repository.is_large(path, sample, file["size"]) else "regular"
        known = {"oid": there[path].etag} if path in there else {}
        ignored = any(fnmatchcase(path.rpartition("/")[2], pattern) for pattern in patterns)
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, **known})
    return _json({"files": answers})


def _batch(question: _Question) -> Reply:
    repository = question.repository()
    if question.account is None:
        raise RefusedError(401, "Invalid username or password.")
    objects = []
    for each in question.json["objects"]:
        entry = {"oid": each["oid"], "size": each["size"]}
        if each["oid"] not in repository.objects:
            address = f"{question.hub.url}/lfs/{repository.repo_id}/{each['oid']}"
            verify = f"{question.hub.url}/{repository.repo_id}.git/info/lfs/verify"
            entry["actions"] = {"upload": {"href": address}, "verify": {"href": verify}}
        objects.append(entry)
    return _json({"transfer": "basic", "objects": objects})


def _store(question: _Question) -> Reply:
    """The address is signed: everyone who has it may upload this content."""
    repository = question.hub.repositories["/".join(question.parts[:2])]
    if File(question.body).sha256 != question.parts[2]:
        raise RefusedError(400, "the content is not that of the SHA-256")
    repository.objects[question.parts[2]] = question.body
    return Reply(b"", 200, {"ETag": '"stored"'})


def _verify(question: _Question) -> Reply:
    if question.json["oid"] not in question.repository().objects:
        raise RefusedError(404, "this object was not uploaded")
    return _json({})


def _commit(question: _Question) -> Reply:
    repository = question.to_commit()
    lines = [json.loads(line) for line in question.body.splitlines()]
    made, reference = repository.commit(
        question.parts[2], lines, pull_request=question.pull_request
    )
    place = f"{question.hub.url}/{repository.repo_id}"
    answers = {"success": True, "commitOid": made.oid, "commitUrl": f"{place}/commit/{made.oid}"}
    if reference:
        number = reference.rpartition("/")[2]
        answers["pullRequestUrl"] = f"{place}/discussions/{number}"
    return _json(answers)


def _branch(question: _Question) -> Reply:
    repository, name = question.to_write(), question.parts[2]
    if name in repository.branches:
        raise RefusedError(409, f"Reference already exists: {name}")
    start = (json.loads(question.body or b"{}") or {}).get("startingPoint", "main")
    repository.branches[name] = repository.at(start).oid
    return _json({})


def _info(question: _Question) -> Reply:
    repository = question.repository()
    commit = repository.at(question.parts[2] if len(question.parts) > 2 else "main")
    return _json(
        {
            "_id": "0" * 24,
            "id": repository.repo_id,
            "modelId": repository.repo_id,
            "sha": commit.oid,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
    )


def _tree(question: _Question) -> Reply:
    commit = question.repository().at(question.parts[2])
    folder = question.parts[3].strip("/") + "/" if len(question.parts) > 3 else ""
    below = {p: f for p, f in commit.files.items() if p.startswith(folder)}
    if folder and not below:
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    recursive = question.query.get("recursive", [""])[0].lower() in ("true", "1")
    entries, folders = [], set()
    for path, file in sorted(below.items()):
        parents = path.removeprefix(folder).split("/")[:-1]
        folders |= {folder + "/".join(parents[:depth]) for depth in range(1, len(parents) + 1)}
        if recursive or not parents:
            entries.append(file.as_dict(path))
    shown = [each for each in sorted(folders) if recursive or "/" not in each.removeprefix(folder)]
    return _json(
        [*({"type": "directory", "path": each, "oid": "1" * 40} for each in shown), *entries]
    )


def _paths_info(question: _Question) -> Reply:
    files = question.repository().at(question.parts[2]).files
    asked = parse_qs(question.body.decode())["paths"]
    return _json([files[path].as_dict(path) for path in asked if path in files])


def _refs(question: _Question) -> Reply:
    repository = question.repository()

    def listed(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"{prefix}{name}", "targetCommit": oid}
            for name, oid in names.items()
        ]

    answers = {
        "branches": listed(repository.branches, "refs/heads/"),
        "tags": listed(repository.tags, "refs/tags/"),
        "converts": [],
    }
    if "include_prs" in question.query:
        answers["pullRequests"] = listed(repository.pulls, "")
    return _json(answers)


def _resolve(question: _Question) -> Reply:
    repository, account = question.repository(), question.account
    if repository.gated and not (account and account.owns(repository.repo_id)):
        status = 403 if account else 401
        raise RefusedError(
            status, f"Access to model {repository.repo_id} is restricted", "GatedRepo"
        )
    commit = repository.at(question.parts[2])
    at = {"X-Repo-Commit": commit.oid}
    file = commit.files.get(question.parts[3])
    if file is None:
        headers = {**at, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return Reply(b"Entry not found", 404, headers)
    if file.lfs:
        place = f"{question.hub.cdn}/{repository.repo_id}/{file.sha256}"
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        return Reply(b"", 302, {**at, **linked, "Location": place})
    return Reply(file.content, 200, {**at, "ETag": f'"{file.etag}"'})


def _cdn(question: _Question) -> Reply:
    """A signed address on another host. A token that is sent here has left the Hub."""
    if "authorization" in question.headers:
        raise RefusedError(400, "a token was sent to the storage of large files")
    content = question.hub.repositories["/".join(question.parts[:2])].objects[question.parts[2]]
    headers = {"ETag": '"cdn"', "Accept-Ranges": "bytes"}
    if found := re.fullmatch(r"bytes=(\d+)-(\d*)", question.headers.get("range", "")):
        start, end = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
        span = f"bytes {start}-{end - 1}/{len(content)}"
        return Reply(content[start:end], 206, {**headers, "Content-Range": span})
    return Reply(content, 200, headers)


_REPO, _ONE = r"([^/]+)/([^/]+)", r"([^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[[_Question], Reply]], ...] = (
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _validate),
    ("POST", f"/api/models/{_REPO}/preupload/{_ONE}", _preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _batch),
    ("POST", rf"/{_REPO}\.git/info/lfs/verify", _verify),
    ("PUT", f"/lfs/{_REPO}/{_ONE}", _store),
    ("POST", f"/api/models/{_REPO}/commit/{_ONE}", _commit),
    ("POST", f"/api/models/{_REPO}/branch/{_ONE}", _branch),
    ("GET", f"/api/models/{_REPO}/revision/{_ONE}", _info),
    ("GET", f"/api/models/{_REPO}/tree/{_ONE}", _tree),
    ("GET", f"/api/models/{_REPO}/tree/{_ONE}/(.+)", _tree),
    ("POST", f"/api/models/{_REPO}/paths-info/{_ONE}", _paths_info),
    ("GET", f"/api/models/{_REPO}/refs", _refs),
    ("GET", f"/api/models/{_REPO}", _info),
    ("GET", f"/cdn/{_REPO}/{_ONE}", _cdn),
    ("GET", f"/{_REPO}/resolve/{_ONE}/(.+)", _resolve),
)


def answer(hub: Hub, command: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
    """Answers a request, or raises RefusedError."""
    parts = urlsplit(target)
    lower = {key.lower(): value for key, value in headers.items()}
    for method, pattern, act in _ROUTES:
        found = re.fullmatch(pattern, parts.path)
        if found and method == command.replace("HEAD", "GET"):
            names = tuple(map(unquote, found.groups()))
            return act(_Question(hub, names, parse_qs(parts.query), body, lower, command))
    raise RefusedError(404, f"the fake Hub does not know {command} {parts.path}")
