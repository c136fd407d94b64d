"""What `distill data shard` looks at before it begins: some images for the size of a shard, and
where it would write.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cutting import ALONE, cut
from shards import write_tars

from distill.data.sources import open_source
from distill.data.stream.manifest import MANIFEST_FILE
from distill.datatools.named import Named, open_named
from distill.datatools.plan import Plan, ShardOptions
from distill.datatools.records import Conversion
from distill.datatools.shard import _agreed_plan, _spread, shard
from distill.errors import InputError
from distill.recipe import schema


def asked(**changes: Any) -> ShardOptions:
    options = {"container": "tar", "seed": None, "resize": None, "quality": None, "labelled": False}
    return ShardOptions(**(options | {"samples_per_shard": None, "shard_mb": 64.0} | changes))


def planned(folder: Path, out: Path, skip: bool = True, **changes: Any) -> Plan:
    out.mkdir()
    settings = schema.ShardsSpec(cache=str(out.parent / "cache"))
    named = open_named(str(folder), labelled=False, shards=settings)
    return _agreed_plan(named, out, asked(**changes), Conversion(), skip)


def test_where_a_shard_has_no_whole_image_it_looks_at_the_next(
    tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    whole = [make_picture(i, (32, 24), "PNG") for i in range(3)]
    write_tars(tmp_path / "in", [b"broken"] * 3 + whole, 3)
    assert planned(tmp_path / "in", tmp_path / "out").num_samples == 6
    write_tars(tmp_path / "bad", [b"broken"] * 6, 3)
    with pytest.raises(
        InputError,
        match="SOURCE: none of 6 images could be read: see that they are images, and whole",
    ):
        planned(tmp_path / "bad", tmp_path / "none")


def test_a_shard_holds_an_image_at_least(photos: Path, tmp_path: Path) -> None:
    plan = planned(photos, tmp_path / "out", shard_mb=1e-6)
    assert (plan.num_samples, plan.num_shards) == (60, 60)


def test_images_are_looked_at_from_end_to_end() -> None:
    """Of many; a folder's first images may be of one kind."""
    seen = _spread(10, 1000)
    assert (len(seen), seen[0], seen[-1]) == (256, 10, 1009)
    assert _spread(10, 3).tolist() == [10, 11, 12]


def test_shards_do_not_go_into_what_is_read_below_its_root(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "root/images")
    spec = schema.ImageFolderSpec(kind="image_folder", path="images")
    named = Named(
        open_source(spec, tmp_path / "root", "SOURCE", schema.ShardsSpec()),
        spec,
        tmp_path / "root",
        "images",
    )
    out = tmp_path / "root/images/shards"
    with pytest.raises(InputError, match="which is read: give a folder outside of it"):
        shard(named, out, asked(), skip=False, num_workers=0, rank=ALONE)
    assert not out.exists()


def test_a_manifest_of_another_set_is_refused(photos: Path, tmp_path: Path) -> None:
    cut(photos, tmp_path / "out")
    cut(photos, tmp_path / "other", samples_per_shard=3)
    shutil.copy(tmp_path / "other" / MANIFEST_FILE, tmp_path / "out")
    with pytest.raises(InputError, match=r"--samples-per-shard \(3 then, 7 now\)"):
        cut(photos, tmp_path / "out")
