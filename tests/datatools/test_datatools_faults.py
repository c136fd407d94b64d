"""distill data shard on bad images, full disks and killed processes; and its command line on bad
input.
"""

import os
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from command import Cli
from cutting import FORK, cut, files, tar_samples

from distill.data.sources import Source
from distill.data.stream.manifest import MANIFEST_FILE
from distill.datatools.container import Sample, write_tar
from distill.datatools.making import Job, make
from distill.datatools.plan import Plan, ShardOptions
from distill.datatools.processes import Rank, in_processes, runs
from distill.datatools.records import Conversion
from distill.datatools.storage import STATE_FOLDER
from distill.errors import InputError

# ---- unreadable images ---------------------------------------------------------------------------


@pytest.fixture
def broken(photos: Path, tmp_path: Path) -> Path:
    """The same with two broken images, one of them cut in half."""
    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    (folder / "dog/021.jpeg").write_bytes(b"no image")
    path = folder / "eel/053.jpeg"
    path.write_bytes(path.read_bytes()[:-200])
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_it(workers: int, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"broken/(dog/021\.jpeg|eel/053\.jpeg): unreadable image .*, or give --unreadable skip"
        ),
    ):
        cut(broken, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    assert not list((tmp_path / "out").glob(".tmp*"))


def test_unreadable_images_are_left_out_and_counted(
    broken: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError):
        cut(broken, tmp_path / "out")
    manifest = cut(
        broken, tmp_path / "out", skip=True
    )  # the same folder continues with the other policy
    assert manifest is not None
    assert (manifest.num_samples, manifest.num_skipped) == (58, 2)
    assert "58 images in 9 tar shards" in (line := capsys.readouterr().out.splitlines()[-1])
    assert "2 unreadable left out" in line
    labels = np.load(tmp_path / "out" / "labels.npy").tolist()
    samples = tar_samples(tmp_path / "out")
    assert labels == [label for *_, label in samples]
    # All others stand where they would stand otherwise.
    expected = [key for key, *_ in tar_samples(whole) if int(key) not in (21, 53)]
    assert [key for key, *_ in samples] == expected
    ours, theirs = files(tmp_path / "out"), files(whole)
    assert Counter(ours[n] == theirs[n] for n in theirs if n.endswith(".tar"))[False] <= 2


def test_a_shard_of_which_nothing_can_be_read_is_left_out(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    for i in range(7):
        next(folder.rglob(f"{i:03d}.*")).write_bytes(b"")
    for _ in range(2):  # again: a whole set, with a shard that has no file
        manifest = cut(folder, tmp_path / "out", skip=True, seed=None, samples_per_shard=6)
        assert manifest is not None
        assert (len(manifest.shards), manifest.num_samples, manifest.num_skipped) == (9, 53, 7)
        assert not (tmp_path / "out/shard-00000.tar").exists()
    # Another process of the finished set, which did not look at that shard.
    assert (
        cut(folder, tmp_path / "out", skip=True, seed=None, samples_per_shard=6, rank=Rank(1, 2))
        == manifest
    )


def test_a_lost_disk_is_no_bad_luck(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    good = make_picture(0, (8, 8), "PNG")
    for name, is_broken in (("lost", lambda i: i < 110), ("old", lambda i: i % 2)):
        folder = tmp_path / name / "cat"
        folder.mkdir(parents=True)
        for i in range(220):
            (folder / f"{i:03d}.png").write_bytes(b"" if is_broken(i) else good)
    ask = {"skip": True, "seed": None, "samples_per_shard": 220}
    with pytest.raises(
        InputError,
        match=r"100 images in a row cannot be read, the last of them .*: is the disk there",
    ):
        cut(tmp_path / "lost", tmp_path / "out", **ask)
    manifest = cut(tmp_path / "old", tmp_path / "other", **ask)
    assert manifest is not None
    assert manifest.num_skipped == 110


# ---- the machine ---------------------------------------------------------------------------------


def _with_little_space(photos: Path, out: Path, workers: int, result: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
    try:
        cut(photos, out, workers=workers)
        result.put("no error")
    except Exception as error:
        result.put(str(error))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_reported_and_the_rest_continues_later(
    workers: int, whole: Path, photos: Path, tmp_path: Path
) -> None:
    result = FORK.SimpleQueue()
    process = FORK.Process(
        target=_with_little_space, args=(photos, tmp_path / "out", workers, result)
    )
    process.start()
    process.join()
    assert (said := result.get()).startswith(f"{tmp_path / 'out'}: no space left to write there"), (
        said
    )
    assert "the same command continues" in said
    assert not list((tmp_path / "out").rglob(".tmp*"))
    assert cut(photos, tmp_path / "out") is not None
    assert files(tmp_path / "out") == files(whole)


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    cut(photos, tmp_path / "out", rank=Rank(0, 3))
    dead = FORK.Process(target=int)
    dead.start()
    dead.join()
    host = os.uname().nodename
    names = [f".tmp-shard-00001.tar--{host}-{pid}" for pid in (dead.pid, os.getpid())] + [
        ".tmp-shard-00001.tar--elsewhere-1",
        ".tmp-shard-00007.tar--elsewhere-1",
    ]
    for name in names:
        (tmp_path / "out" / name).touch()
    os.utime(tmp_path / "out" / names[3], (0, 0))
    cut(photos, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").glob(".tmp*")} == {names[1], names[2]}


def test_what_is_written_is_read_back(source: Source, tmp_path: Path) -> None:
    def careless(file: BinaryIO, samples: Iterable[Sample]) -> None:
        write_tar(file, [sample._replace(content=sample.content[:-1]) for sample in samples])

    plan = Plan(ShardOptions("tar", 0, None, None, True, 7, None), "", 60, 9, "jpg")
    (tmp_path / STATE_FOLDER).mkdir()
    for write, fault in ((write_tar, False), (careless, True)):
        job = Job(source, plan, tmp_path, Conversion(), write, False, {})
        if fault:
            with pytest.raises(
                InputError, match=r"shard-00001\.tar: what was written is not what is read back"
            ):
                make(job, 1)
            assert not (tmp_path / "shard-00001.tar").exists()
        else:
            assert make(job, 0).num_samples == 6


def _end(_: None, number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_local_process_is_reported() -> None:
    with pytest.raises(
        InputError, match="one of the local processes was killed, often for want of memory"
    ):
        list(in_processes(_end, None, range(8), 2))
    assert sorted(in_processes(_end, None, (0, 1, 2, 4), 2)) == [0, 1, 2, 4]


def _sleep(folder: Path, number: int) -> None:
    (folder / f"{os.getpid()}").touch()
    time.sleep(60)


def _parent(folder: Path) -> None:
    list(in_processes(_sleep, folder, range(2), 2))


def test_local_processes_end_with_a_killed_command(tmp_path: Path) -> None:
    process = FORK.Process(target=_parent, args=(tmp_path,))
    process.start()
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while any(runs(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_says_what_it_did_in_a_line(cli: Cli, photos: Path, tmp_path: Path) -> None:
    code, out, err = cli(
        "data", "shard", photos, tmp_path / "out", "--samples-per-shard", 20, "--workers", 1
    )
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert line.startswith(f"{tmp_path / 'out'}: 60 images in 3 tar shards, 0.2 MB; ")
    assert line.endswith("images/s")


def test_the_data_of_a_recipe_is_a_source(
    cli: Cli, tiny_recipe: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        {
            "data": {
                "train": {"kind": "image_folder", "path": "train"},
                "eval": None,
                "root": str(photos.parent),
            }
        }
    )
    assert cli("data", "shard", f"{recipe}:data.train", tmp_path / "out", "--workers", 0).code == 0
    assert len(tar_samples(tmp_path / "out")) == 60
    code, _, err = cli("data", "shard", f"{recipe}:data.eval", tmp_path / "eval")
    assert (code, "data.eval of the recipe is null" in err) == (2, True)
    code, _, err = cli("data", "shard", f"{recipe}:stages.one.data.train", tmp_path / "eval")
    assert (code, "the recipe has no stage 'one'; it has none" in err) == (2, True)
    code, _, err = cli("data", "shard", f"{recipe}:data.train", tmp_path / "eval", "--split", "x")
    assert (code, "says that itself" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "out"], "SOURCE nowhere: there is no such file or folder"),
        (["trian", "out"], "SOURCE trian: there is no such file or folder (did you mean 'train'?)"),
        (["train", "file"], "file: is a file; give a folder"),
        (["train", "train"], "train: lies in train, which is read: give a folder outside of it"),
        (["train", "train/shards"], "train/shards: lies in train, which is read"),
        (["train", "other"], "other: holds files that distill data shard did not write"),
        (
            ["mixed", "out"],
            (
                "SOURCE mixed: holds *.tar and *.parquet: say which with a pattern, such as"
                " 'mixed/*.tar'"
            ),
        ),
        (["train", "out", "--split", "x"], "--split x: train (image_folder) has no splits"),
        (["fashion_mnist:all", "out"], "Fashion-MNIST has no split 'all'"),
        (["empty", "out"], "SOURCE: empty has no class folders"),
        (["train", "out", "--classes", "nowhere.txt"], "--classes nowhere.txt: neither a file nor"),
        (["train", "out", "--classes", "file"], "class 'cat' is not in the class list of 1"),
        (["train", "out", "--shard-mb", "0"], "--shard-mb 0.0: should be above 0"),
        (["train", "out", "--shard-mb", "1", "--samples-per-shard", "1"], "give one of them"),
        (["train", "out", "--quality", "90"], "--quality: only what --resize shrinks"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str],
    said: str,
    cli: Cli,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "file").write_text("hello\n")
    for folder, name in (("other", "a.txt"), ("mixed", "a.tar"), ("mixed", "a.parquet")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    (tmp_path / "empty").mkdir()
    code, out, err = cli("data", "shard", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_launcher_that_says_half_is_refused(
    cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, world_size in (("", "2"), ("1", ""), ("2", "2"), ("x", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        code, _, err = cli("data", "shard", photos, tmp_path / "out")
        assert (code, f"RANK={rank} and WORLD_SIZE={world_size}: should be" in err) == (2, True)
