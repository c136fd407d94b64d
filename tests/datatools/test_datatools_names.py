"""`distill data inspect` of images and classes of any name: what is printed is the name, and no
more is made of it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.records import is_leftover
from distill.datatools import look
from distill.datatools.inspect import examine, show, write_sheet
from distill.datatools.named import open_named
from distill.datatools.sheet import view_of
from distill.errors import InputError

NAMES = [
    "[red]cat[",
    "[bold]",
    "a\nb",
    "\x1b[31mred",
    "\u202egnp",
    "x" * 200,
    " lead",
    "a, b",
    ":smile:",
    "b",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(look, "_SPEED_S", 0.01)
    monkeypatch.chdir(tmp_path)


def folder_of(root: Path, names: list[str], image: bytes) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "[x]\n.png").write_bytes(image)
        (root / name / "broken[x]\x1b.jpg").write_bytes(b"nothing")
    return root


def test_every_name_is_printed_as_it_is(
    make_picture: Callable[..., bytes], tmp_path: Path, cli: Cli
) -> None:
    folder_of(tmp_path / "set", NAMES[:5], make_picture(0, (40, 30), "PNG"))
    done = cli("data", "inspect", "set", "--workers", 0)
    assert done.code == 0
    assert "classes     5: \\x1b[31mred, [bold], [red]cat[, a\\nb, \\u202egnp\n" in done.out
    assert "unreadable  5 of them\n" in done.out
    assert "set/a\\nb/broken[x]\\x1b.jpg: no image of a kind" in done.out
    assert "\x1b" not in done.out
    assert (tmp_path / "inspect.png").is_file()
    folder_of(tmp_path / "more", NAMES[5:], make_picture(0, (40, 30), "PNG"))
    done = cli("data", "inspect", "more", "--workers", 0)
    assert f"5: ' lead', :smile:, 'a, b', b, {'x' * 100}...\n" in done.out


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    names=st.lists(
        st.text(
            st.characters(exclude_characters="/\0", exclude_categories=("Cs",)),
            min_size=1,
            max_size=40,
        ).filter(
            lambda name: (
                name not in (".", "..") and len(name.encode()) < 200 and not is_leftover(name)
            )
        ),
        min_size=2,
        max_size=4,
        unique=True,
    )
)
def test_any_class_names(
    names: list[str], make_picture: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Counts and names are those of the folders, or the names cannot be told apart and that is
    said.
    """
    root = folder_of(
        tmp_path_factory.mktemp("any") / "set", names, make_picture(0, (40, 30), "PNG")
    )
    try:
        named = open_named(str(root))
    except InputError:  # two of them look alike
        return
    report, readable = examine(named, num_images=99, seed=0, num_workers=0)
    assert sorted(json.loads(json.dumps(report))["classes"]["first"]) == sorted(names)
    assert (report["num_samples"], len(readable)) == (2 * len(names), len(names))
    assert report["classes"]["samples"] == {
        "smallest": 2,
        "median": 2,
        "largest": 2,
        "empty_classes": 0,
    }
    show(report, None, "a view", as_json=False)
    write_sheet(
        named,
        readable,
        replace(view_of(None, ""), image_size=16, teacher_size=16),
        0,
        root.parent / "sheet.png",
    )


def test_unusual_pixels_and_refused_images_are_counted(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    deep = np.linspace(0, 65535, 64).reshape(8, 8)
    for number, values in enumerate(
        [deep.astype("u2"), deep.astype("f4"), deep.astype("u2") // 16]
    ):
        Image.fromarray(values).save(tmp_path / "set" / "a" / f"{number}.tiff")
    Image.new("CMYK", (8, 8)).save(tmp_path / "set" / "a" / "3.jpg")
    (tmp_path / "set" / "b").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "set" / "b" / "4.png")
    said = json.loads(cli("data", "inspect", "set", "--workers", 0, "--no-sheet", "--json").out)[
        "looked_at"
    ]
    assert said["pixel_formats"] == {"I;16": 2, "F": 1, "CMYK": 1, "L": 1}
    assert said["refused"] == 2
    assert sorted(Path(each["where"]).name for each in said["unreadable"]) == ["1.tiff", "2.tiff"]
    out = cli("data", "inspect", "set", "--workers", 0, "--no-sheet").out
    assert re.search(r"pixels: 2 I;16, 1 (F, 1 CMYK|CMYK, 1 F)\n", out)
    assert "unreadable  2 of them, 2 for the range of their values\n" in out


@pytest.mark.parametrize(("bits", "brightest"), [(14, 63), (15, 127), (16, 255)])
def test_bits_that_no_image_uses_are_reported(
    bits: int, brightest: int, tmp_path: Path, cli: Cli
) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.linspace(0, 2**bits - 1, 64).reshape(8, 8).astype("u2")).save(
            f"set/{name}/1.png"
        )
        Image.new("L", (8, 8), 255).save(f"set/{name}/2.png")
    said = json.loads(cli("data", "inspect", "set", "--workers", 0, "--no-sheet", "--json").out)[
        "looked_at"
    ]
    assert said["brightest_of_deep"] == brightest
    out = cli("data", "inspect", "set", "--workers", 0, "--no-sheet").out
    line = f"the brightest pixel of those with more than 8 bits becomes {brightest} of 255"
    assert (line in " ".join(out.split())) == (bits < 16)


def test_a_root_of_splits_lists_them_and_how_to_name_each(
    make_picture: Callable[..., bytes], cli: Cli
) -> None:
    for split in ("train", "val"):
        folder_of(Path("root") / split, ["cat", "dog"], make_picture(0, (40, 30), "PNG"))
    done = cli("data", "inspect", "root", "--workers", 0)
    assert done.code == 2
    assert (
        "root holds folders of splits, not of classes: train, val. Give one of them: root/train or"
        " root/val" in done.err
    )
    assert "4 images" in cli("data", "inspect", "root/val", "--workers", 0, "--no-sheet").out
