"""The Hub's answers, from a server on loopback."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from servers import FolderServer

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub:
    """The Hub's answers, as far as `datasets` and we ask: a repository's commit, tree and files."""

    def __init__(self, folder: Path, server: FolderServer) -> None:
        self.folder, self.server = folder, server

    def repository(self, repo: str, files: dict[str, bytes], readme: str | None = None) -> None:
        api, resolve = f"/api/datasets/{repo}", f"/datasets/{repo}/resolve"
        absent = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        for revision in ("main", COMMIT, "v1"):
            for name in (
                "README.md",
                f"{repo.split('/')[1]}.py",
                ".huggingface.yaml",
                "dataset_infos.json",
            ):
                self.server.reply(f"{resolve}/{revision}/{name}", b"", status=404, headers=absent)
            if readme is not None:
                headers = {"ETag": '"1"', "X-Repo-Commit": COMMIT}
                self.server.reply(
                    f"{resolve}/{revision}/README.md", readme.encode(), headers=headers
                )
        said = json.dumps(
            {"id": repo, "sha": COMMIT, "siblings": [], "private": False, "tags": []}
        ).encode()
        self._json(api, said)
        for revision in (COMMIT, "main", "v1"):
            self._json(f"{api}/revision/{revision}", said)
        tree: dict[str, list[dict[str, Any]]] = {"": []}
        for name, content in files.items():
            file = self.folder / f"datasets/{repo}/resolve/{COMMIT}/{name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            lfs = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entry = {
                "type": "file",
                "path": name,
                "oid": "0" * 40,
                "size": len(content),
                "lfs": lfs,
            }
            folder = os.path.dirname(name)
            tree.setdefault(folder, []).append(entry)
        tree[""] += [
            {"type": "directory", "path": folder, "oid": "1" * 40} for folder in tree if folder
        ]
        for folder in {"data", *tree}:
            path = f"{api}/tree/{COMMIT}" + (f"/{folder}" if folder else "")
            if folder in tree:
                self._json(path, json.dumps(tree[folder]).encode())
            else:
                self.server.reply(
                    path, b"{}", status=404, headers={"X-Error-Code": "EntryNotFound"}
                )

    def gated(self, repo: str) -> None:
        for path in (f"/datasets/{repo}/resolve/main/README.md", f"/api/datasets/{repo}"):
            self.server.reply(path, b"{}", status=401, headers={"X-Error-Code": "GatedRepo"})

    def _json(self, path: str, body: bytes) -> None:
        self.server.reply(path, body, headers={"Content-Type": "application/json"})
