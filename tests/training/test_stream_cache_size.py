"""Streams on several processes: any number reads the lanes; too small a cache is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from shards import images_of, write_tars
from stages import two_stages
from tiny import (
    write_recipe,
)

from distill.data.fashion import EmbeddedFashionMnist
from distill.data.stream.source import StreamSource
from distill.errors import InputError
from distill.recipe import load_recipe
from distill.training.plan import Plan, make_plan
from distill.training.streams import check_streams


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


def checked(recipe: Path, num_processes: int, here: int, *overrides: str) -> None:
    from distill.training.streams import check_streams

    check_streams(make_plan(load_recipe(recipe, overrides)), num_processes, here)


def test_any_number_of_processes_reads_the_lanes(foreign: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        two_stages(foreign),
        {"train": {"micro_batch_size": None, "batch_size_global": 48}},
    )
    for num_processes in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 48):
        checked(recipe, num_processes, num_processes)


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
