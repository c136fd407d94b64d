"""The miniature of the whole path (docs/two_stages.md): `distill data shard`, a server with faults,
a teacher, two stages, one stage.

By default shrunk to the images that come with the package and to a few steps, stopped by a real
signal in each stage. The slow one is `benchmarks/two_stages.py` on all of Fashion-MNIST, where
the number of processes changes as well.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import FolderServer
from tiny import assert_same_run, checkpoint, eval_set, records, report, run, stop_after

from distill.datatools.commands import shard
from distill.recipe import load_recipe
from distill.training.loop import DONE, INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
STEPS = 10  # of each stage
SHRUNK = [
    "data.train.path=null",
    "data.fraction=0.05",
    "data.num_workers=0",
    "student.schedule.warmup=2 iterations",
    "evaluate.every=8 iterations",
    "checkpoint.every=4 iterations",
    "log.every=2 iterations",
    "train.batch_size_global=32",
    "train.micro_batch_size=16",
]
NUM_FOREIGN, PER_SHARD = 6000, 100


class Miniature:
    """The shards, their server, and a trained teacher."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "served" / "shards"
        source = folder / "source.yaml"
        source.write_text("extends: miniature/teacher\ndata: {train: {path: null}}\n")
        shard(
            f"{source}:data.train",
            self.shards,
            samples_per_shard=PER_SHARD,
            unlabelled=True,
            workers=0,
        )
        self.eval_folder = eval_set(folder / "eval")
        self.server = FolderServer(folder / "served")

    def url(self, case: str) -> str:
        (self.folder / "served" / case).symlink_to("shards")
        return f"{self.server.url}/{case}"

    def train(self, recipe: str, output: str, *overrides: str) -> int:
        """`distill train miniature/RECIPE`, shrunk."""
        return run(
            Path(f"miniature/{recipe}"),
            *SHRUNK,
            f"data.eval.path={self.eval_folder}",
            f"output={self.folder / output}",
            *overrides,
        )

    def two_stages(self, output: str, url: str) -> int:
        return self.train(
            "two_stages",
            output,
            f"teacher.weights={self.folder / 'teacher'}",
            *(f"stages.{stage}.budget={STEPS} iterations" for stage in ("unlabelled", "labelled")),
            f"stages.unlabelled.data.train={{path: '{url}', block: 64}}",
            f"data.shards.cache={self.folder / f'cache-{output}'}",
            "data.shards.timeout_s=60",
        )


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    miniature = Miniature(tmp_path_factory.mktemp("miniature"))
    with miniature.server:
        assert miniature.train("teacher", "teacher", "train.budget=20 iterations") == DONE
        yield miniature
    shutil.rmtree(miniature.folder)


def test_the_foreign_set_has_no_labels(miniature: Miniature) -> None:
    manifest = json.loads((miniature.shards / "manifest.json").read_text())
    assert manifest["num_samples"] == NUM_FOREIGN
    assert [each["num_samples"] for each in manifest["shards"]] == [PER_SHARD] * (
        NUM_FOREIGN // PER_SHARD
    )
    assert manifest["classes"] is None
    assert manifest["labels"] is None


def test_two_stages_stopped_in_each_behind_a_bad_server_end_as_if_nothing_had_been(
    miniature: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert miniature.two_stages("undisturbed", miniature.url("set")) == DONE
    fetched = {
        path: count
        for path, count in miniature.server.requests.items()
        if path.startswith("/set/shard-")
    }
    assert 0 < len(fetched) < NUM_FOREIGN / PER_SHARD, "320 images want some of the shards"
    assert set(fetched.values()) == {1}

    # The same URL, so the same recipe; from now on the server fails, and another cache asks it.
    for number, path in enumerate(sorted(fetched)):
        fault: dict[str, Any] = [
            {"kind": "status", "status": 503},
            {"kind": "reset", "after_bytes": 40_000},
            {"kind": "truncate", "after_bytes": 9_000},
            {"kind": "corrupt", "after_bytes": 70_000},
        ][number % 4]
        if number < 8:
            miniature.server.fault(path, **fault)
    (miniature.folder / "cache-undisturbed").rename(miniature.folder / "cache-before")
    for steps in (STEPS // 2, STEPS):  # in the first stage; in the second
        stop_after(steps, monkeypatch)
        assert miniature.two_stages("stopped", f"{miniature.server.url}/set") == INTERRUPTED
        monkeypatch.undo()
        assert int(checkpoint(miniature.folder / "stopped").name.removeprefix("step-")) in (
            STEPS // 2,
            STEPS // 2 + STEPS,
        )
    assert miniature.two_stages("stopped", f"{miniature.server.url}/set") == DONE
    assert_same_run(miniature.folder / "stopped", miniature.folder / "undisturbed")
    again = {path: count for path, count in miniature.server.requests.items() if path in fetched}
    assert sorted(again.values()) == [2] * (len(again) - 8) + [3] * 8, (
        "each fault cost a request, and a stop none"
    )


def test_stages_and_what_they_read(miniature: Miniature) -> None:
    """Soft labels alone, then both; the stream, then the labelled images."""
    output = miniature.folder / "undisturbed"
    stages = report(output)["stages"]
    assert [(s["name"], s["last_step"], s["labels_read"]) for s in stages] == [
        ("unlabelled", STEPS, False),
        ("labelled", 2 * STEPS, True),
    ]
    losses = {
        line["stage"]: set(line["students"]["kd"])
        for line in records(output)
        if line["event"] == "train"
    }
    assert losses["labelled"] - losses["unlabelled"] == {"loss_hard"}
    assert "loss_soft" in losses["unlabelled"]


def test_one_stage_is_as_long(miniature: Miniature) -> None:
    teacher = f"teacher.weights={miniature.folder / 'teacher'}"
    assert (
        miniature.train("one_stage", "one", teacher, f"train.budget={2 * STEPS} iterations") == DONE
    )
    result = report(miniature.folder / "one")
    assert result["steps"] == report(miniature.folder / "undisturbed")["steps"]
    assert set(result["students"]) == {"kd", "alone"}


def test_the_rows_have_equal_iterations_and_their_recipes_differ_in_the_stages_alone() -> None:
    two, one, teacher = (
        load_recipe(f"miniature/{name}") for name in ("two_stages", "one_stage", "teacher")
    )
    assert [str(stage.budget) for stage in two.stages] == ["936 iterations"] * 2
    assert str(one.train.budget) == "1872 iterations"
    assert two.students["kd"] == one.students["kd"]
    last = two.at_stage(1)
    assert last.students["kd"] == one.students["kd"]
    assert last.data == one.data
    assert last.data.train == teacher.data.train
    assert last.data.fraction == teacher.data.fraction == 0.1


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_whole_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 60,000 images, an eighth as long as the recipes say; two processes in the middle. No
    figure of accuracy decides.
    """
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import two_stages

    figures_file = tmp_path / "figures.json"
    arguments = [
        "--iterations",
        "117",
        "--teacher-epochs",
        "2",
        "--memory-epochs",
        "3",
        "--folder",
        str(tmp_path / "runs"),
    ]
    assert two_stages.main([*arguments, "--json", str(figures_file)]) == 0
    figures = json.loads(figures_file.read_text())
    disturbed = figures["disturbed"]
    assert [each["processes"] for each in disturbed["sessions"]] == [1, 2, 1]
    assert disturbed["compared"]["others_that_differ"] == 0
    assert disturbed["top1"][0] == pytest.approx(disturbed["top1"][1], abs=0.05)
    resident = figures["resident_mib"]
    assert max(resident[4:]) < resident[3] + 30, "memory does not grow after the first epoch"
