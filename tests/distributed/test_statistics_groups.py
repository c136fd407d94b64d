"""Four processes compute what one does where a micro-batch is spread over two of them.

The batch of 16 samples has two micro-batches of 8, so two neighbouring processes of four form a
statistics group. BatchNorm and DIST compute over the group; only the order of additions differs.
"""

from typing import Any

import numpy as np
import pytest
from launch import Launch, deviation
from tiny import EVERYTHING, records, run, tensors, write_recipe

from distill.data.loading.rank_slice import RankSlice
from distill.training.loop import DONE
from distill.training.share import share_of_process

STUDENTS: dict[str, Any] = {
    # timm's BatchNormAct2d, drop path, and a loss that relates the samples of a micro-batch.
    "effnet": {
        "model": "test_efficientnet",
        "drop_path": 0.3,
        "drop_rate": 0.0,
        "optimizer": {"name": "momentum", "lr": 0.01},
        "objective": {"hard": {"loss": "ce"}, "soft": {"loss": "dist"}},
        "ema": {"decays": [0.8]},
    },
    "resnet": {"optimizer": {"name": "momentum", "lr": 0.02}},
}
GROUPS: dict[str, Any] = {
    "students": STUDENTS,
    "train": {"budget": "4 iterations", "batch_size_global": 16, "micro_batch_size": 8},
}
# Six micro-batches: three forwards for each of two groups.
THREE: dict[str, Any] = {"train": {"batch_size_global": 48, "budget": "2 iterations"}}
ZERO: dict[str, Any] = {"train": {"zero_stage": 2}}
# As in test_two_processes.py: BatchNorm of a few samples amplifies the rounding of sums.
ROUNDING = 1e-2


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("groups")
    launch = Launch(folder, num_processes=4)
    launch.add("four", write_recipe(folder, EVERYTHING, GROUPS, name="four"))
    launch.add("three", write_recipe(folder, EVERYTHING, GROUPS, THREE, name="three"))
    launch.add("zero", write_recipe(folder, EVERYTHING, GROUPS, ZERO, name="zero"))
    launch.start()
    try:
        assert run(write_recipe(folder, EVERYTHING, GROUPS, name="one")) == DONE
        assert run(write_recipe(folder, EVERYTHING, GROUPS, THREE, name="one-three")) == DONE
    finally:
        launch.finish()
    return launch


@pytest.mark.parametrize(
    ("name", "one"), [("four", "one"), ("zero", "one"), ("three", "one-three")]
)
def test_a_group_computes_what_one_process_does(launch: Launch, name: str, one: str) -> None:
    assert launch.codes(name) == [DONE] * 4, launch.shown(name)
    recipe = launch.folder / f"{one}.yaml"
    apart = deviation(launch.folder / name, launch.folder / one, recipe)
    assert max(apart.values()) < ROUNDING, apart
    for student in STUDENTS:
        four, alone = (tensors(launch.folder / each, student) for each in (name, one))
        statistics = [key for key in alone if key.endswith(("running_mean", "running_var"))]
        assert statistics
        for key in statistics:
            assert float((four[key] - alone[key]).abs().max()) < 1e-2, key
    losses = [
        [line["students"] for line in records(launch.folder / each) if line["event"] == "train"]
        for each in (name, one)
    ]
    assert losses[0]
    for four_step, one_step in zip(*losses, strict=True):
        for student in STUDENTS:
            assert four_step[student]["loss_total"] == pytest.approx(
                one_step[student]["loss_total"], rel=1e-3
            )


@pytest.mark.parametrize("num_processes", [1, 3, 8, 32, 64, 384, 512])
def test_every_slot_comes_once_and_a_group_holds_a_micro_batch(num_processes: int) -> None:
    batch, micro = (2048, 256) if num_processes % 3 else (1536, 256)
    share = share_of_process(batch, micro, num_processes)
    slices = [
        RankSlice(rank, num_processes, share.micro_batch_size, share.num_forwards)
        for rank in range(num_processes)
    ]
    slots = np.concatenate([each.slots(i) for each in slices for i in range(share.num_forwards)])
    assert sorted(slots) == list(range(batch))
    for first in range(0, num_processes, share.group_size):
        group = slices[first : first + share.group_size]
        for forward in range(share.num_forwards):
            together = np.concatenate([each.slots(forward) for each in group])
            assert len(together) == micro
            assert len(set(together // micro)) == 1
            assert list(together) == sorted(together)
