"""What a machine must hold of a stream at once, and what it is told where its cache is too small
for that.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from shards import images_of, write_tars
from tiny import write_recipe

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
