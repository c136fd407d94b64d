"""The files of a data set of the Hub."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, Hub
from listings import parquet_of, tar_of
from servers import FolderServer

from distill.data.stream.hub import parse_hub_path


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("hf://datasets/o/n", ("o/n", None, None)),
        ("hf://datasets/o/n@v1/", ("o/n", "v1", None)),
        (
            "hf://datasets/o/n@refs/convert/parquet/default/*.parquet",
            ("o/n", "refs/convert/parquet", "default/*.parquet"),
        ),
        ("hf://datasets/o/n/data/{0..9}.tar", ("o/n", None, "data/{0..9}.tar")),
    ],
)
def test_hub_paths(path: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parse_hub_path(path, "data.train") == parts


ASKING = """
import json, sys
from pathlib import Path
from distill.data.stream.opening import open_stream
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec

for fields in json.loads(sys.argv[1]):
    try:
        spec = StreamSpec(kind="stream", **fields)
        settings = ShardsSpec(cache="cache", retries=0, timeout_s=5)
        source = open_stream(spec, Path(sys.argv[2]), "data.train", settings)
        said = {
            "sizes": source.shard_sizes.tolist(),
            "classes": source.classes,
            "urls": [s.url for s in source.shards],
            "images": [source.read(i).decode() for i in range(len(source))],
            "fingerprint": source.fingerprint(),
            "labels": source.labels[list(range(len(source)))].tolist(),
            "sha256": [s.sha256 for s in source.shards],
        }
    except InputError as error:
        said = str(error)
    print("SAID", json.dumps(said), flush=True)
"""


README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': ox
          '1': yak
---
"""


def test_the_hub(tmp_path: Path, served: FolderServer) -> None:
    """Webdataset and Parquet repositories, a gate, and what is not there, in a process of its own,
    since the endpoint is read at import.
    """
    hub = Hub(tmp_path / "served", served)
    info = {
        "splits": {
            "train": {"filenames": ["x-train-0.tar", "x-train-1.tar"], "shard_lengths": [1, 2]}
        }
    }
    tars = {f"x-train-{i}.tar": tar_of(range(i + 1)) for i in range(2)} | {
        "x-validation-0.tar": tar_of(range(3))
    }
    hub.repository("timm/wds", tars | {"_info.json": json.dumps(info).encode()})
    tables = {
        f"data/train-{i:05d}-of-00002.parquet": parquet_of(range(i + 2), ["ox", "yak"])
        for i in range(2)
    }
    hub.repository(
        "o/table",
        tables | {"data/test-00000-of-00001.parquet": parquet_of(range(1), ["ox", "yak"])},
        README,
    )
    hub.repository("o/pictures", {"a.txt": b"text"})
    hub.gated("o/gated")
    (tmp_path / "classes.txt").write_text("ox\nyak\n")
    asked = [
        {"path": "hf://datasets/timm/wds", "split": "train", "classes": "classes.txt"},
        {"path": "hf://datasets/timm/wds@v1/x-train-{1..1}.tar", "classes": "classes.txt"},
        {"path": "hf://datasets/o/table", "split": "train"},
        {"path": "hf://datasets/timm/wds", "split": "validation", "classes": "classes.txt"},
        {"path": "hf://datasets/o/table", "split": "trai"},
        {"path": "hf://datasets/timm/wds", "split": "train"},
        {"path": "hf://datasets/o/gated", "split": "train"},
        {"path": "hf://datasets/o/none"},
        {"path": "hf://datasets/timm/wds/y-*.tar"},
        {"path": "hf://datasets/o/pictures"},
    ]
    environment = {
        **os.environ,
        "HF_ENDPOINT": served.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    command = [sys.executable, "-c", ASKING, json.dumps(asked), str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    said = [
        json.loads(line.removeprefix("SAID "))
        for line in done.stdout.splitlines()
        if line.startswith("SAID")
    ]
    assert len(said) == len(asked), done.stderr
    whole, part, table, uncounted, *refused = said
    root = f"hf://datasets/timm/wds@{COMMIT}"
    assert whole["urls"] == [f"{root}/x-train-0.tar", f"{root}/x-train-1.tar"]
    assert (whole["sizes"], whole["images"], whole["labels"]) == (
        [1, 2],
        ["image 0", "image 0", "image 1"],
        [0, 0, 1],
    )
    assert whole["sha256"] == [
        hashlib.sha256(tars[f"x-train-{i}.tar"]).hexdigest() for i in range(2)
    ]
    assert (part["sizes"], part["urls"]) == ([2], [f"{root}/x-train-1.tar"])
    assert (table["sizes"], table["classes"], table["labels"]) == (
        [2, 3],
        ["ox", "yak"],
        [0, 1, 0, 1, 0],
    )
    assert table["images"] == ["image 0", "image 1", "image 0", "image 1", "image 2"]
    assert any(seen.path == "/datasets/timm/wds/resolve/v1/README.md" for seen in served.log)
    assert "--count" in uncounted
    for message, expected in zip(
        refused,
        (
            (
                "data.train.split: hf://datasets/o/table has no split 'trai' (did you mean"
                " 'train'?): choose one of "
            ),
            "data.train.classes: nothing in hf://datasets/timm/wds names its classes",
            (
                "is a gated dataset on the Hub. You must be authenticated to access it: accept the"
                f" terms at {served.url}/datasets/o/gated"
            ),
            "data.train.path: hf://datasets/o/none: ",
            "data.train.path: hf://datasets/timm/wds/y-*.tar: ",
            "data.train.container: a.txt is neither .tar nor .parquet",
        ),
        strict=True,
    ):
        assert expected in message, message
    fetched = [seen for seen in served.log if seen.path.endswith(("0.tar", "1.tar", "2.parquet"))]
    assert len(fetched) >= 4
    assert all(seen.headers["authorization"] == "Bearer hf_secret" for seen in fetched)
