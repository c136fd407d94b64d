"""The benchmarks of streams run, count what was lost, and tell a good order from a bad one. No time
decides a test.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

Modules = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def module() -> Modules:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return lambda name: import_module(f"benchmarks.{name}")


def measured(module: ModuleType, folder: Path, *arguments: str) -> dict[str, Any]:
    file = folder / "figures.json"
    assert module.main([*arguments, "--quick", "--json", str(file)]) == 0
    return json.loads(file.read_text())


# ---- streaming -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streamed(module: Modules, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With the peers that are there: `datasets`, from disk, always."""
    return measured(
        module("streaming"),
        tmp_path_factory.mktemp("streaming"),
        "--images",
        "jpeg",
        "--workers",
        "0",
    )


def test_every_contestant_delivers_two_whole_epochs(streamed: dict[str, Any]) -> None:
    assert list(streamed["speed"]) == ["jpeg http 0", "jpeg disk 0"]
    for row, figures in streamed["speed"].items():
        place = row.split()[1]
        assert list(figures["rounds"]) == streamed["contestants"][place]
        assert all(
            answer["images"] == [64, 64]
            for answers in figures["rounds"].values()
            for answer in answers
        )
        assert all(
            min(answer["wall_s"]) > 0
            for answers in figures["rounds"].values()
            for answer in answers
        )
    assert streamed["contestants"]["disk"][:2] == ["ours", "datasets"]
    second = streamed["speed"]["jpeg disk 0"]["second"]
    assert second["fastest"] != "ours"
    ours, peer = (second["images_per_s"][name]["median"] for name in ("ours", second["fastest"]))
    assert second["ratio"]["median"] == pytest.approx(ours / peer)
    memory = streamed["memory"]["jpeg disk 0"]["datasets"]
    assert memory["peak_bytes"] > memory["before_bytes"] > 0


def test_what_a_stop_costs_is_counted(streamed: dict[str, Any]) -> None:
    exact = {"lost": 0, "twice": 0, "same_order": True}
    for place in ("http", "disk"):
        ways = streamed["resume"][place]["ways"]
        for cache in ("kept", "empty"):
            assert ways[f"ours, first_step, cache {cache}"].items() >= exact.items()
    ways = streamed["resume"]["disk"]["ways"]
    assert ways["datasets, skip"].items() >= exact.items()
    assert ways["datasets, state_dict"]["lost"] > 0  # what lay in its buffer
    assert not ways["datasets, state_dict"]["same_order"]


def test_peers_that_are_missing_are_named_with_the_mend(
    module: Modules, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contestants = module("contestants")  # imports what looks for packages itself
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "webdataset" else object()
    )
    part = contestants.taking_part(("http", "disk"))
    assert part == {"http": ["ours", "datasets"], "disk": ["ours", "datasets"]}
    said = capsys.readouterr().out
    assert (
        said.count("for want of webdataset") == 3
    )  # with and without a cache over http, and from disk
    assert "uv pip install --target PEERS webdataset" in said


def test_the_jpegs_are_all_different_and_of_a_photographs_size(
    module: Modules, tmp_path: Path
) -> None:
    made = module("shards").write_shards(tmp_path / "set", "jpeg", 40, 4)
    assert 70e3 < made.mean_bytes < 140e3
    contents, labels = {}, []
    for name in made.names:
        with tarfile.open(made.folder / name) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                if member.name.endswith(".cls"):
                    labels.append(int(content))
                else:
                    contents[member.name] = content
    assert labels == list(range(40))
    assert len(set(contents.values())) == 40
    assert all(max(Image.open(io.BytesIO(content)).size) == 500 for content in contents.values())
    lengths = json.loads((made.folder / "_info.json").read_text())["splits"]["train"]
    assert lengths == {"filenames": list(made.names), "shard_lengths": [10] * 4}


def test_memory_and_time_of_descendants_count(module: Modules) -> None:
    trees = module("trees")
    script = (
        "import sys, time\nheld = b'x' * 50_000_000\nwhile time.process_time() < 0.3:"
        " pass\nprint('up', flush=True)\nsys.stdin.read()"
    )
    cpu_before = trees.tree_cpu_s(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert trees.tree_bytes(child.pid) > 45e6
        assert trees.tree_bytes(os.getpid()) > trees.tree_bytes(child.pid) + 10e6
        assert trees.tree_cpu_s(os.getpid()) - cpu_before > 0.25
        child.stdin.close()
    assert trees.tree_cpu_s(os.getpid()) - cpu_before > 0.25


# ---- shuffling -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shuffled(module: Modules, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shuffling")
    return measured(module("shuffling"), folder)["scales"]["quick"]


def test_sorted_shards_are_distinguished_from_shuffled_ones(shuffled: dict[str, Any]) -> None:
    rows = {kind: {order_of(row): row for row in found["rows"]} for kind, found in shuffled.items()}
    middle = "lanes 512 16 60"
    assert rows["sorted"][middle]["chi2_batch"] > 5
    assert 1.2 < rows["windows"][middle]["chi2_batch"] < 2
    assert rows["shuffled"][middle]["chi2_batch"] == pytest.approx(1, abs=0.05)
    assert shuffled["sorted"]["smallest_block"] is None
    larger_blocks = [
        rows["sorted"][f"lanes {block} 16 60"]["chi2_batch"] for block in (64, 512, 4096)
    ]
    assert larger_blocks == sorted(larger_blocks, reverse=True)
    for kind in rows:
        assert rows[kind]["buffer 100"]["shard_r1"] > 0.8, "a buffer of a tenth of a shard"
        assert abs(rows[kind][middle]["shard_r1"]) < 0.05


def order_of(row: dict[str, Any]) -> str:
    return " ".join(
        str(row[key]) for key in ("order", "block", "lanes", "num_shards", "buffer") if key in row
    )


def test_costs_are_those_of_lanes_and_blocks(shuffled: dict[str, Any]) -> None:
    rows = {order_of(row): row for row in shuffled["sorted"]["rows"] if row["order"] == "lanes"}
    narrow, wide = rows["lanes 64 16 60"], rows["lanes 4096 16 60"]
    assert 16 <= narrow["first"] <= 18, (
        "lanes of 3,750 samples, a block in one or two shards of 1,000"
    )
    assert narrow["at_once"] <= 32
    assert wide["at_once"] == 60
    assert wide["at_once_bytes"] == pytest.approx(60e6)


def test_figures_of_known_rows(module: Modules) -> None:
    figures = module("shuffling")
    parts = np.array([0.5, 0.25, 0.25])
    rows = np.array([[0, 0, 1, 2], [0, 0, 0, 0]])
    assert figures.distinct(rows) == 2.0
    assert figures.chi2(rows[:1], parts) == 0
    assert figures.chi2(rows[1:], parts) == pytest.approx((2**2 / 2 + 1 + 1) / 2)
    chance = 0.375
    assert figures.autocorrelation(rows[0], rows[0], parts) == 1
    assert figures.autocorrelation(rows[0], rows[1], parts) == pytest.approx(
        (0.5 - chance) / (1 - chance)
    )
    pairs = np.concatenate([rows, np.array([[1, 2, 1, 2], [2, 1, 2, 1]])])
    neighbours, successive = figures.lags(pairs, parts)
    assert neighbours == pytest.approx((4 / 12 - chance) / (1 - chance))
    assert successive == pytest.approx((2 / 8 - chance) / (1 - chance)), (
        "of the rows of a pair, not of two pairs"
    )
    assert figures.independent(parts, 2) == pytest.approx(0.75 + 2 * (1 - 0.75**2))


def test_pairs_that_meet_again_are_counted(module: Modules) -> None:
    """Against counting every pair; an order that repeats itself meets all of them again."""
    from distill.data.order.lanes import LaneOrder

    figures = module("shuffling")
    order = LaneOrder(np.full(6, 20), 12, 0, lanes=4, block=10)
    first, second = (
        [
            frozenset(order.batch(step + of).indices.tolist())
            for step in range(order.steps_per_epoch)
        ]
        for of in (0, order.steps_per_epoch)
    )
    met = sum(len(a & b) * (len(a & b) - 1) // 2 for a in first for b in second)
    share = met / (len(first) * 12 * 11 / 2)
    batches = np.stack([order.batch(step).indices for step in range(order.steps_per_epoch)])
    assert figures.met_again(order, batches) == pytest.approx(share / (11 / 119))


def test_a_buffer_gives_back_what_it_was_given(module: Modules) -> None:
    orders = module("label_orders")
    taken = orders._through_buffer(np.arange(1000), 50, 400, np.random.default_rng(0))
    assert len(set(taken.tolist())) == 400
    assert (taken <= np.arange(400) + 50).all()
    assert (np.diff(taken) < 0).mean() > 0.3
    scale = orders.QUICK
    batches = orders.buffered(scale, orders.shard_sizes(scale, 60), 100)([5, 6])
    assert batches.shape == (2, scale.batch_size)
    assert len(np.unique(batches)) == batches.size


def test_windows_keep_every_label(module: Modules) -> None:
    orders = module("label_orders")
    sizes = orders.shard_sizes(orders.QUICK, 60)
    labels = {kind: orders.labels_of(orders.QUICK, kind, sizes, 16) for kind in orders.KINDS}
    counts = [np.bincount(each, minlength=50).tolist() for each in labels.values()]
    assert counts[0] == counts[1] == counts[2] == orders.class_sizes(orders.QUICK).tolist()
    in_first_shard = [len(np.unique(labels[kind][:1000])) for kind in orders.KINDS]
    assert in_first_shard[0] < in_first_shard[1] < in_first_shard[2]
