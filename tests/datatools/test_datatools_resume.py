"""distill data shard, interrupted: killed, damaged, begun otherwise."""

import dataclasses
import io
import itertools
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cutting import FORK, cut, files, inodes

from distill.data.sources import open_source
from distill.data.stream.manifest import MANIFEST_FILE, read_manifest, write_manifest
from distill.datatools.container import write_tar
from distill.datatools.making import Job, make
from distill.datatools.named import Named, open_named
from distill.datatools.plan import ShardOptions, read_plan
from distill.datatools.processes import Rank, runs
from distill.datatools.records import Conversion
from distill.datatools.shard import _agreed_plan, _close
from distill.datatools.storage import STATE_FOLDER
from distill.errors import InputError
from distill.recipe import schema

# ---- interrupted, damaged ------------------------------------------------------------------------


def _killed_at(step: int, photos: Path, out: Path) -> None:
    """Cut, and die at the step-th file that is synced, put in its place or removed."""
    counted = itertools.count(1)

    def deadly(what: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(counted) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return what(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink")):
        setattr(owner, name, deadly(getattr(owner, name)))
    cut(photos, out, samples_per_shard=30)


def test_killed_at_any_step_it_continues(photos: Path, tmp_path: Path) -> None:
    cut(photos, tmp_path / "whole", samples_per_shard=30)
    for step in itertools.count(1):
        out = tmp_path / f"killed-{step}"
        process = FORK.Process(target=_killed_at, args=(step, photos, out))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        done = {
            path.name.removesuffix(".json") for path in (out / STATE_FOLDER).glob("shard-*.json")
        }
        before = inodes(out)
        cut(photos, out, samples_per_shard=30)
        assert files(out) == files(tmp_path / "whole")
        assert all(inodes(out)[name] == before[name] for name in done), (
            "a finished shard was written again"
        )
    assert step > 15


def test_killed_at_any_moment_it_continues(whole: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    attempts = 0
    while not (out / MANIFEST_FILE).is_file():
        before = inodes(out)
        process = FORK.Process(target=cut, args=(photos, out), kwargs={"workers": 2})
        process.start()
        while process.is_alive() and len(inodes(out).items() - before.items()) <= attempts % 3:
            time.sleep(0.0005)
        process.kill()
        process.join()
        attempts += 1
    while any(runs(int(path.name.rpartition("-")[2])) for path in out.rglob(".tmp-*")):
        time.sleep(0.01)  # local processes that have not ended yet
    cut(photos, out, workers=2)
    assert files(out) == files(whole)


@pytest.mark.parametrize("damage", ["shorten", "flip", "remove"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_written_again(
    damage: str, finished: bool, whole: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if finished:
        shutil.copytree(whole, out)
    else:
        assert cut(photos, out, rank=Rank(0, 2)) is None
    path = out / "shard-00002.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-512] if damage == "shorten" else content)
    others = {name: inode for name, inode in inodes(out).items() if name != path.name}
    assert cut(photos, out) is not None
    assert files(out) == files(whole)
    assert others.items() <= inodes(out).items()


def test_a_finished_set_that_cannot_be_made_again_is_reported(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    """As with another version of Pillow: what is written is not what the manifest says."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    manifest = read_manifest((out / MANIFEST_FILE).read_bytes(), "here")
    changed = dataclasses.replace(manifest.shards[2], sha256="00" * 32)
    write_manifest(
        out,
        dataclasses.replace(manifest, shards=(*manifest.shards[:2], changed, *manifest.shards[3:])),
    )
    with pytest.raises(
        InputError,
        match=(
            r"shard-00002\.tar: was damaged, and written again it differs from what manifest\.json"
            r" says"
        ),
    ):
        cut(photos, out)


def test_a_damaged_label_file_is_written_again(whole: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "labels.npy").write_bytes(b"nothing")
    assert cut(photos, tmp_path / "out") is not None
    assert files(tmp_path / "out") == files(whole)


def test_a_damaged_manifest_is_reported_and_nothing_is_written(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    """It alone says what the shards were made with."""
    shutil.copytree(whole, tmp_path / "out")
    manifest = tmp_path / "out" / MANIFEST_FILE
    for content in (manifest.read_bytes()[:-9], b"{}"):
        manifest.write_bytes(content)
        before = files(tmp_path / "out")
        with pytest.raises(
            InputError,
            match=r"manifest\.json: damaged: write into another|holds files that distill",
        ):
            cut(photos, tmp_path / "out")
        assert files(tmp_path / "out") == before


def test_a_process_that_is_late_finds_the_set_closed(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    """Its shards are there, and the working folder is gone since it began."""
    shutil.copytree(whole, tmp_path / "out")
    before = inodes(tmp_path / "out")
    named = open_named(str(photos))
    plan = read_plan(tmp_path / "out")
    assert plan is not None
    job = Job(named.source, plan, tmp_path / "out", Conversion(), write_tar, False, {})
    assert all(make(job, number).was_there for number in range(plan.num_shards))
    manifest = _close(job, str(photos), named.source.classes)
    assert manifest is not None
    assert manifest.num_samples == 60
    assert inodes(tmp_path / "out") == before


def test_a_whole_set_is_left_as_it_is(
    whole: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    before = inodes(tmp_path / "out")
    cut(photos, tmp_path / "out")
    assert inodes(tmp_path / "out") == before
    assert "all of them were there and are whole" in capsys.readouterr().out


def test_the_source_may_have_moved(whole: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "elsewhere")
    cut(photos, tmp_path / "out", rank=Rank(0, 2))
    cut(tmp_path / "elsewhere", tmp_path / "out", rank=Rank(1, 2))
    assert {k: v for k, v in files(tmp_path / "out").items() if k != MANIFEST_FILE} == {
        k: v for k, v in files(whole).items() if k != MANIFEST_FILE
    }


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, r"--seed \(seed 0 then, seed 1 now\)"),
        ({"seed": None}, r"--seed \(seed 0 then, --no-shuffle now\)"),
        ({"resize": 32}, r"--resize \(not given then, 32 now\)"),
        ({"container": "parquet"}, r"--container \(tar then, parquet now\)"),
        ({"samples_per_shard": 8}, r"--samples-per-shard \(7 then, 8 now\)"),
        ({"labelled": False}, r"--unlabelled \(with labels then, without labels now\)"),
    ],
)
def test_other_options_are_refused(
    changed: dict[str, Any], said: str, whole: Path, photos: Path
) -> None:
    with pytest.raises(
        InputError,
        match=rf"begun with other input: {said}\. Give what it was begun with, or write into",
    ):
        cut(photos, whole, **changed)


def test_another_source_is_refused(
    whole: Path, photos: Path, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    for change in ("picture", "label"):
        other = tmp_path / change
        shutil.copytree(photos, other)
        if change == "picture":
            (other / "cat/000.jpeg").write_bytes(make_picture(99, (90, 64), "JPEG"))
        else:
            (other / "cat/003.jpeg").rename(other / "dog/003.jpeg")
        with pytest.raises(InputError, match="SOURCE or --classes"):
            cut(other, whole)


def test_another_stream_is_refused(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    """Other classes, shards or fields would be mixed into one set, without a word."""

    def write(number: int, labels: str, seconds: int) -> None:
        path = tmp_path / "in" / f"{number}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for i, label in enumerate(labels):
                content = make_picture(i, (32, 24), "JPEG")
                for name, part in (
                    (f"{i}.jpg", content),
                    (f"{i}.cls", label.encode()),
                    (f"{i}.alt", b"a"),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(part)
                    archive.addfile(info, io.BytesIO(part))
        os.utime(path, (seconds, seconds))

    def begin(classes: str, label: str | None = None) -> None:
        (tmp_path / "classes.txt").write_text("\n".join(classes))
        spec = schema.StreamSpec(kind="stream", path="in", label=label, classes="classes.txt")
        source = open_source(
            spec, tmp_path, "SOURCE", schema.ShardsSpec(cache=str(tmp_path / "cache"))
        )
        _agreed_plan(
            Named(source, spec, tmp_path, "in"), tmp_path / "out", asked, Conversion(), False
        )

    asked = ShardOptions("tar", 0, None, None, True, 2, None)
    for number in range(3):
        write(number, "abba", 1)
    begin("ab")
    begin("ab")
    shutil.copytree(tmp_path / "in", tmp_path / "moved")  # keeps the times
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "moved").rename(tmp_path / "in")
    begin("ab")
    for classes, label in (("ba", None), ("abc", None), ("ab", "alt")):
        with pytest.raises(InputError, match="begun with other input: SOURCE or --classes"):
            begin(classes, label)
    write(1, "aaaa", 2)
    with pytest.raises(InputError, match="begun with other input: SOURCE or --classes"):
        begin("ab")
