"""distill data inspect: what it says is what is there, of files and of shards behind HTTP; and the
sheet shows what a run would see.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Cli
from PIL import Image
from servers import FolderServer
from timm import create_model

from distill.data.augment import TrainTransform
from distill.data.decode import read_image
from distill.data.stream.manifest import MANIFEST_FILE
from distill.datatools import look
from distill.datatools.named import Named, open_named
from distill.datatools.sheet import View, draw_sheet, student_view, teacher_view, view_of
from distill.recipe import load_recipe, schema


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(look, "_SPEED_S", 0.05)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def report(cli: Cli, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = cli(
            "data",
            "inspect",
            *arguments,
            "--json",
            "--no-sheet",
            "--workers",
            0,
            "--cache",
            tmp_path / "cache",
        )
        assert code == 0, err
        parsed: dict[str, Any] = json.loads(out)
        return parsed

    return call


@pytest.fixture
def shards(cli: Cli, photos: Path, tmp_path: Path) -> Path:
    """The photos in 6 tar files with a manifest."""
    out = tmp_path / "www" / "shards"
    assert cli("data", "shard", photos, out, "--samples-per-shard", 10, "--workers", 0).code == 0
    return out


@pytest.fixture
def server(shards: Path) -> Iterator[FolderServer]:
    with FolderServer(shards.parent) as server:
        yield server


# ---- what is said --------------------------------------------------------------------------------


def test_a_folder_is_described(photos: Path, report: Callable[..., dict[str, Any]]) -> None:
    said = report(photos)
    assert (said["kind"], said["num_samples"], said["shards"]) == ("image_folder", 60, None)
    assert said["classes"] == {
        "count": 3,
        "first": ["cat", "dog", "eel"],
        "label_set": None,
        "samples": {"smallest": 20, "median": 20, "largest": 20, "empty_classes": 0},
    }
    seen = said["looked_at"]
    files = [path.read_bytes() for path in photos.rglob("*.*")]
    pictures = [Image.open(path) for path in photos.rglob("*.*")]
    assert seen["images"] == 60
    assert seen["bytes"]["smallest"] == min(map(len, files))
    assert seen["bytes"]["largest"] == max(map(len, files))
    assert seen["bytes"]["median"] == sorted(map(len, files))[30]
    assert seen["pixels"]["largest"] == [90, 64]
    assert seen["pixels"]["smallest"] == list(
        min((p.size for p in pictures), key=lambda s: s[0] * s[1])
    )
    assert seen["formats"] == {"JPEG": 30, "PNG": 10, "WEBP": 10, "GIF": 10}
    assert seen["unreadable"] == []
    assert said["speed"]["images_per_s"] > 0
    assert said["speed"]["processes"] == 1


def test_unreadable_images_are_named(
    photos: Path, tmp_path: Path, report: Callable[..., dict[str, Any]], cli: Cli
) -> None:
    shutil.copytree(photos, tmp_path / "broken")
    broken = tmp_path / "broken/dog/021.jpeg"
    broken.write_bytes(broken.read_bytes()[:-200])
    (fault,) = report("broken")["looked_at"]["unreadable"]
    assert fault["where"] == "broken/dog/021.jpeg"
    assert "truncated" in fault["why"].lower()
    code, out, _ = cli("data", "inspect", "broken", "--no-sheet", "--workers", 1)
    assert code == 0
    assert "unreadable  1 of them" in out
    assert f"broken/dog/021.jpeg: {fault['why']}" in out


def test_which_images_are_looked_at_is_the_seed_s(
    photos: Path, report: Callable[..., dict[str, Any]]
) -> None:
    once = report(photos, "--images", 10)["looked_at"]
    assert once["images"] == 10
    assert report(photos, "--images", 10)["looked_at"] == once
    assert any(
        report(photos, "--images", 10, "--seed", seed)["looked_at"] != once for seed in (1, 2, 3)
    )


def test_a_known_label_set_is_named(
    tmp_path: Path, make_picture: Callable[..., bytes], report: Callable[..., dict[str, Any]]
) -> None:
    for name in ("n01440764", "n02119789"):
        (tmp_path / "some" / name).mkdir(parents=True)
        (tmp_path / "some" / name / "a.jpg").write_bytes(make_picture(0, (20, 20), "JPEG"))
    said = report("some", "--classes", "imagenet-1k")["classes"]
    assert (said["count"], said["label_set"]) == (1000, "imagenet-1k")
    assert said["samples"] == {"smallest": 0, "median": 0, "largest": 1, "empty_classes": 998}
    assert report("some")["classes"]["label_set"] is None


def test_shards_are_described(shards: Path, report: Callable[..., dict[str, Any]]) -> None:
    said = report(shards)
    manifest = json.loads((shards / MANIFEST_FILE).read_text())
    sizes = [shard["size"] for shard in manifest["shards"]]
    assert said["shards"] == {
        "count": 6,
        "first": "shard-00000.tar",
        "samples": {"smallest": 10, "median": 10, "largest": 10},
        "block": 256,
        "bytes": {"smallest": min(sizes), "median": sorted(sizes)[3], "largest": max(sizes)},
        "bytes_total": sum(sizes),
        "fetched": None,
    }
    assert said["classes"]["samples"] == {
        "smallest": 20,
        "median": 20,
        "largest": 20,
        "empty_classes": 0,
    }
    assert (said["looked_at"]["images"], said["looked_at"]["shards"]) == (40, 4)


def test_of_shards_behind_http_four_come_here(
    server: FolderServer, report: Callable[..., dict[str, Any]]
) -> None:
    said = report(f"{server.url}/shards")
    assert (said["num_samples"], said["shards"]["count"]) == (60, 6)
    assert said["shards"]["fetched"]["shards"] == 4
    assert said["shards"]["fetched"]["bytes"] > 0
    assert sum(path.endswith(".tar") for path in server.requests) == 4


def test_counts_that_nothing_says_are_made_and_kept(
    server: FolderServer,
    shards: Path,
    cli: Cli,
    tmp_path: Path,
    report: Callable[..., dict[str, Any]],
) -> None:
    (shards / MANIFEST_FILE).unlink()
    code, _, err = cli("data", "inspect", shards, "--no-sheet")
    assert code == 2  # nothing names the classes
    assert "give --unlabelled" in err
    assert "--classes" in err
    url = f"{server.url}/shards/shard-{{00000..00005}}.tar"
    ask = (
        "data",
        "inspect",
        url,
        "--unlabelled",
        "--no-sheet",
        "--workers",
        0,
        "--cache",
        tmp_path / "cache",
    )
    code, _, err = cli(*ask)
    assert code == 2
    assert "--count" in err
    assert "SOURCE: nothing says how many samples" in err
    code, out, err = cli(*ask, "--count")
    assert code == 0, err
    assert "60 images (stream)" in out
    assert "counted 6 of 6 shards" in err
    assert report(url, "--unlabelled")["classes"] is None  # from what was kept


def test_what_people_read(shards: Path, cli: Cli) -> None:
    code, out, err = cli("data", "inspect", shards, "--workers", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{shards}: 60 images (stream)"
    assert lines[1] == "shards      6, of 10 images; the first is shard-00000.tar"
    assert (
        "            a run shuffles within 256 images of a lane, unless it sets data.train.block"
        in lines
    )
    assert "classes     3: cat, dog, eel" in lines
    assert "            20 images each" in lines
    assert "looked at   40 images of 4 shards" in lines
    assert "unreadable  none of them" in lines
    assert any(
        line.startswith("speed") and line.endswith("read and decoded by 2 processes")
        for line in lines
    )
    assert lines[-1] == "sheet       inspect.png, with the augmentation of strategy A2"
    assert Image.open("inspect.png").format == "PNG"


# ---- the sheet -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(photos: Path) -> Named:
    return open_named(str(photos))


def test_the_student_s_view_is_that_of_the_first_epoch(
    named: Named, tiny_recipe: Callable[..., Path]
) -> None:
    """Beside the training loader's own batch of the same recipe, seed and images."""
    from distill.data.loading.rank_slice import RankSlice, TrainBuilder
    from distill.data.mixing import Mixing
    from distill.data.order.shuffled import Order

    augment = schema.AugmentSpec(auto_augment="rand-m7-mstd0.5", random_erasing=0.5)
    view = View(augment, 24, 32, "", "")
    order = Order(60, 8, seed=5)
    builder = TrainBuilder(
        named.source,
        order,
        TrainTransform(image_size=24, **augment.model_dump(exclude={"repeats"})),
        Mixing(num_classes=3, image_size=24, seed=5, **schema.MixingSpec().model_dump()),
        RankSlice(0, 1, 8, 1),
        "error",
    )
    batch = builder[(0, 0)]
    indices = order.batch(0).indices
    for i, index in enumerate(indices.tolist()):
        assert np.array_equal(student_view(named.source, index, view, 5), batch.images[i].numpy())


def test_the_teacher_s_view_is_what_its_pixels_see(named: Named) -> None:
    from distill.models.pixels import Pixels

    student = student_view(named.source, 0, View(schema.AugmentSpec(), 24, 40, "", ""), 0)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = Pixels(mean, std, 40)
    seen = pixels(torch.from_numpy(student).permute(2, 0, 1)[None] / 255)[0]
    shown = seen * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    assert teacher_view(student, 40).shape == (40, 40, 3)
    assert (
        np.abs(teacher_view(student, 40) - (shown.clamp(0, 1) * 255).permute(1, 2, 0).numpy()).max()
        < 0.51
    )
    assert np.array_equal(teacher_view(student, 24), student)


def test_the_sheet_holds_the_views(named: Named, photos: Path, tmp_path: Path) -> None:
    view = View(schema.AugmentSpec(), 120, 150, "test", "test")
    indices = list(range(30))
    sheet = draw_sheet(named.source, indices, view, 0, "title")
    assert np.array_equal(
        np.asarray(sheet), np.asarray(draw_sheet(named.source, indices, view, 0, "title"))
    )
    assert not np.array_equal(
        np.asarray(sheet), np.asarray(draw_sheet(named.source, indices, view, 1, "title"))
    )
    # 4 x 6 pairs, left the student's, right the teacher's: every one is found where it should be.
    pixels = np.asarray(sheet)
    places = []
    for index in range(24):
        student = student_view(named.source, index, view, 0)
        row, column = divmod(index, 4)
        x, y = 8 + column * (120 + 150 + 24), 2 * 16 + 8 + row * (150 + 24) + 16
        assert np.array_equal(pixels[y : y + 120, x : x + 120], student)
        assert np.array_equal(pixels[y : y + 150, x + 128 : x + 278], teacher_view(student, 150))
        places.append((x, y))
    assert sheet.height == places[-1][1] + 150 + 8


def test_small_images_are_shown_larger(named: Named) -> None:
    view = View(schema.AugmentSpec(), 16, 32, "test", "test")
    sheet = np.asarray(draw_sheet(named.source, [3], view, 0, "title"))
    student = student_view(named.source, 3, view, 0)
    assert np.array_equal(sheet[56 : 56 + 16 * 7 : 7, 8 : 8 + 16 * 7 : 7], student)


def test_the_view_is_the_recipe_s(tiny_recipe: Callable[..., Path], tiny_run: Path) -> None:
    a2 = view_of(None, "")
    assert (a2.image_size, a2.teacher_size) == (224, 224)
    assert a2.augment == load_recipe("imagenet1k/res50_beitv2b_a2_300ep").data.augment
    assert view_of(None, "", 448).teacher_size == 448
    own = load_recipe(
        tiny_recipe({"teacher": {"image_size": 48}, "data": {"augment": {"padding": 3}}})
    )
    view = view_of(own, "tiny")
    assert (view.augment.padding, view.image_size, view.teacher_size) == (3, 16, 48)
    assert view_of(own, "tiny", 64).teacher_size == 64
    timm = load_recipe(
        tiny_recipe({"teacher": {"image_size": None, "model": "beit_large_patch16_384"}}, name="b")
    )
    assert view_of(timm, "tiny").teacher_size == 384
    ours = {"image_size": None, "model": None, "weights": str(tiny_run), "student": "alone"}
    config = json.loads((tiny_run / "best/alone/config.json").read_text())
    found = view_of(load_recipe(tiny_recipe({"teacher": ours}, name="c")), "tiny")
    assert found.teacher_size == config["pretrained_cfg"]["input_size"][-1]
    assert found.teacher_of.endswith("best/alone/config.json")
    torch.save(create_model("test_resnet").state_dict(), "plain.pth")
    plain = {"image_size": None, "model": "test_resnet", "weights": "plain.pth"}
    bare = view_of(load_recipe(tiny_recipe({"teacher": plain}, name="e")), "tiny")
    assert (bare.teacher_size, bare.teacher_of) == (
        16,
        "data.image_size",
    ), "as the run feeds it, not timm's 160"
    gone = load_recipe(tiny_recipe({"teacher": {**ours, "weights": "nowhere"}}, name="d"))
    assert view_of(gone, "tiny").teacher_of == "as the student's: nowhere is not here to say"


def test_an_unreadable_image_is_not_on_the_sheet(
    named: Named, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "broken")
    first = next(iter(sorted((tmp_path / "broken/cat").iterdir())))
    first.write_bytes(b"")
    view = View(schema.AugmentSpec(), 112, 112, "test", "test")
    broken = open_named(str(tmp_path / "broken")).source
    with pytest.raises(ValueError, match="unreadable image"):
        read_image(broken, 0)
    assert np.array_equal(
        np.asarray(draw_sheet(broken, [0, 1, 2], view, 0, "title")),
        np.asarray(draw_sheet(named.source, [1, 2], view, 0, "title")),
    )


def test_the_sheet_says_whose_it_is(
    cli: Cli, tiny_recipe: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        {"data": {"train": {"kind": "image_folder", "path": str(photos)}, "eval": None}}
    )
    assert (
        cli("data", "inspect", f"{recipe}:data.train", "--workers", 0, "--sheet", "one.png").code
        == 0
    )
    assert (
        cli(
            "data", "inspect", photos, "--recipe", recipe, "--workers", 0, "--sheet", "two.png"
        ).code
        == 0
    )
    one, two = (np.asarray(Image.open(name)) for name in ("one.png", "two.png"))
    assert np.array_equal(one[40:], two[40:])  # below what says whose it is
    assert cli("data", "inspect", photos, "--workers", 0, "--sheet", "three.png").code == 0
    assert np.asarray(Image.open("three.png")).shape != one.shape  # strategy A2's 224 pixels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["photos", "--sheet", "no/where.png"],
            "--sheet no/where.png: cannot be written: No such file or directory",
        ),
        (
            ["photos", "--no-sheet", "--recipe", "quickstart/students"],
            "--recipe: says how the sheet is drawn, and --no-sheet",
        ),
        (
            ["photos", "--recipe", "quickstart/studnets"],
            "no recipe 'quickstart/studnets' (did you mean",
        ),
        (["photos", "--cache-gb", "0"], "--cache-gb 0.0: should be above 0"),
        (["shards/*.tar", "--cache", "file"], "--cache: "),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], said: str, cli: Cli, photos: Path, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "shards").symlink_to(shards)
    (tmp_path / "file").touch()
    code, out, err = cli("data", "inspect", "--workers", 0, *arguments)
    assert (code, out) == (2, "")
    assert said in err
