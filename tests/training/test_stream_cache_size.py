"""Streams on several processes: any number reads the lanes; too small a cache is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shards import images_of, write_tars
from stages import two_stages
from tiny import write_recipe

from distill.data.fashion import EmbeddedFashionMnist
from distill.data.order.lanes import LaneOrder
from distill.data.stream.source import StreamSource
from distill.errors import InputError
from distill.recipe import load_recipe
from distill.training.plan import Plan, make_plan
from distill.training.streams import _lanes_of_a_machine, check_streams


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 shards of four images."""
    folder = tmp_path_factory.mktemp("shards")
    write_tars(folder, images_of(EmbeddedFashionMnist("train"), range(300)), 4)
    return folder


def planned(shards: Path, folder: Path, block: int) -> Plan:
    """A plan over the shards as if they were elsewhere, of 1 GB each."""
    stream = {"kind": "stream", "path": str(shards), "labelled": False, "lanes": 4, "block": block}
    soft = {"student": {"objective": {"hard": None, "soft": {"loss": "kl"}}}}
    cache = {"cache": str(folder / "cache"), "cache_gb": 7}
    recipe = write_recipe(
        folder, {"data": {"train": stream, "fraction": 1.0, "shards": cache}}, soft
    )
    plan = make_plan(load_recipe(recipe))
    local = plan.stages[0].source
    assert isinstance(local, StreamSource)
    listed = [
        replace(shard, url=f"http://host/{shard.name}", size_bytes=10**9) for shard in local.shards
    ]
    remote = StreamSource(listed, local._fetcher, (), labelled=False)
    return replace(plan, stages=(replace(plan.stages[0], source=remote),))


@pytest.mark.parametrize(
    ("block", "num_shards", "says"),
    [
        (
            20,
            44,
            "take a smaller data.train.block than 20, fewer lanes, more machines or smaller shards",
        ),
        (2, 8, "take fewer lanes, more machines or smaller shards"),
    ],
)
def test_a_smaller_block_is_advised_where_it_helps(
    block: int, num_shards: int, says: str, small_shards: Path, tmp_path: Path
) -> None:
    plan = planned(small_shards, tmp_path, block)
    needs = (
        f"have about {num_shards} shards in use at once, {num_shards} GB of"
        " http://host/shard-00000.tar"
    )
    with pytest.raises(
        InputError, match=f"cache_gb: 7, and the 4 lanes that this machine reads {needs}.* {says}"
    ):
        check_streams(plan, 1, 1)
    if block == 2:
        check_streams(plan, 2, 1)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "here", "lanes"),
    [(768, 192, 3, 1, 32), (768, 192, 12, 4, 24), (1536, 384, 3, 1, 32), (2048, 256, 64, 8, 8)],
)
def test_the_cache_holds_the_lanes_of_any_machine(
    batch: int, micro: int, processes: int, here: int, lanes: int
) -> None:
    """Slices of processes may cut pairs of the 64 lanes at both ends."""
    order = LaneOrder(np.full(64, 1000), batch, 1, lanes=64, block=256)
    train = SimpleNamespace(batch_size_global=batch, micro_batch_size=micro)
    plan: Any = SimpleNamespace(recipe=SimpleNamespace(train=train))
    assert _lanes_of_a_machine(plan, order, processes, here) == lanes


def test_a_cache_that_cannot_hold_what_lanes_read_at_once_is_refused(
    foreign: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from distill.data.stream.source import StreamSource
    from distill.training.streams import check_streams

    small = write_recipe(tmp_path, two_stages(foreign), {"data": {"shards": {"cache_gb": 0.85}}})
    plan = make_plan(load_recipe(small))
    local = plan.stages[0].source
    assert isinstance(local, StreamSource)
    check_streams(plan, 1, 1)  # local tar shards do not go through the cache
    remote = StreamSource(
        [
            replace(shard, url=f"http://host/{shard.name}", size_bytes=10**8)
            for shard in local.shards
        ],
        local._fetcher,
        (),
        labelled=False,
    )
    plan = replace(plan, stages=(replace(plan.stages[0], source=remote), plan.stages[1]))
    with pytest.raises(
        InputError,
        match=(
            r"cache_gb: 0.85, and the 16 lanes that this machine reads have about 9 shards in use"
            r" at once, 0.9 GB of http"
        ),
    ):
        check_streams(plan, 1, 1)
    check_streams(plan, 8, 1)
