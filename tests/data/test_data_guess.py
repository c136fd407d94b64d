"""What a path on the command line names: which kind of source, and what is refused."""

from pathlib import Path

import pytest

from distill.data.guess import guess_source, in_options, known_classes
from distill.errors import InputError
from distill.recipe import schema


@pytest.mark.parametrize(
    "path",
    [
        "https://host/shards",
        "http://host/a-{000..127}.tar",
        "s3://bucket/train/*.parquet",
        "hf://datasets/timm/imagenet-1k-wds",
        "train-{0000..0127}.tar",
        "train-{0000..0127}.parquet",
        "nowhere/*.tar",
    ],
)
def test_urls_braces_and_tar_files_are_streams(path: str) -> None:
    spec = guess_source(path, "names.txt", split="validation", labelled=False)
    assert isinstance(spec, schema.StreamSpec)
    assert (spec.path, spec.classes, spec.split, spec.labelled) == (
        path,
        "names.txt",
        "validation",
        False,
    )


def test_folders_of_shards_are_streams_and_those_of_tables_are_not(tmp_path: Path) -> None:
    for name in (
        "tars/a.tar",
        "made/a.parquet",
        "made/manifest.json",
        "tables/a.parquet",
        "app/a.parquet",
        "app/manifest.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"shards": []}' if name.startswith("made/m") else "{}")
    kinds = {
        name: guess_source(str(tmp_path / name)).kind
        for name in ("tars", "made", "tables", "app", "tars/a.tar")
    }
    assert kinds == {
        "tars": "stream",
        "made": "stream",
        "tables": "parquet",
        "app": "parquet",
        "tars/a.tar": "stream",
    }
    unlabelled = guess_source(str(tmp_path / "tables"), labelled=False)  # a table wants its labels
    assert isinstance(unlabelled, schema.StreamSpec)
    assert not unlabelled.labelled


def test_tars_below_subfolders_are_a_stream_and_images_are_not(tmp_path: Path) -> None:
    for name in (
        "set/README.md",
        "set/train/0/a.tar",
        "photos/ox/1.jpg",
        "photos/yak/odd.tar",
        "packed/a.tar.gz",
        "UP.TAR",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = ("set", "photos", "packed", "packed/a.tar.gz", "UP.TAR")
    kinds = [guess_source(str(tmp_path / name)).kind for name in names]
    assert kinds == ["stream", "image_folder", "stream", "stream", "stream"]


def test_the_first_file_in_order_of_names_tells(tmp_path: Path) -> None:
    for name in (
        "tars/x/1.tar",
        "tars/x/2.jpg",
        "photos/x/1.jpg",
        "photos/x/2.tar",
        "photos/y/0.tar",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [guess_source(str(tmp_path / name)).kind for name in ("tars", "photos")] == [
        "stream",
        "image_folder",
    ]


def test_a_damaged_manifest_is_one_of_ours(tmp_path: Path) -> None:
    """Who reads it says that it is damaged; a table would go without what it promises."""
    (tmp_path / "a.parquet").touch()
    (tmp_path / "manifest.json").write_text('{"shards"')
    assert guess_source(str(tmp_path)).kind == "stream"


def test_saved_data_sets_and_their_splits(tmp_path: Path) -> None:
    for name in ("one/state.json", "several/dataset_dict.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    found = [
        guess_source(str(tmp_path / name), default_split="train") for name in ("one", "several")
    ]
    assert [(each.kind, each.split) for each in found] == [("saved", None)] * 2
    assert guess_source(str(tmp_path / "several"), split="val").split == "val"


def test_fashion_mnist_is_a_name_or_its_files_and_a_folder_may_be_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("", ".gz"):
        folder = tmp_path / f"idx{suffix}"
        folder.mkdir()
        (folder / f"t10k-images-idx3-ubyte{suffix}").touch()
        expected = schema.FashionMnistSpec(kind="fashion_mnist", split="test", path=str(folder))
        assert guess_source(str(folder)) == expected
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion_mnist/cat").mkdir(parents=True)
    assert guess_source("fashion_mnist").kind == "image_folder"


def test_splits(tmp_path: Path) -> None:
    for name, split in (("fashion_mnist", "test"), ("fashion_mnist:train", "train")):
        assert guess_source(name) == schema.FashionMnistSpec(kind="fashion_mnist", split=split)
    assert guess_source("fashion_mnist", default_split="train").split == "train"
    assert guess_source("fashion_mnist", split="train").split == "train"  # type: ignore[union-attr]
    with pytest.raises(InputError, match="names split train, and --split test"):
        guess_source("fashion_mnist:train", split="test")
    with pytest.raises(InputError, match="has no split 'val': it has train and test"):
        guess_source("fashion_mnist:val")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"--split test: .*photos \(image_folder\) has no splits"):
        guess_source(str(tmp_path / "photos"), split="test")


def test_what_is_not_there_or_mixed_is_refused(tmp_path: Path) -> None:
    for path in ("nowhere", "nowhere.tar", "nowhere.parquet"):
        with pytest.raises(InputError, match=f"SOURCE {path}: there is no such file or folder"):
            guess_source(path, option="SOURCE")
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        InputError, match=r"phots: there is no such file or folder \(did you mean 'photos'\?\)"
    ):
        guess_source(str(tmp_path / "phots"))
    with pytest.raises(InputError, match=r"a.tar: there is no such file or folder$"):
        guess_source(str(tmp_path / "no/folder/a.tar"))
    (tmp_path / "photos").rmdir()
    with pytest.raises(InputError, match="SOURCE: the path is empty"):
        guess_source("", option="SOURCE")
    for name in ("a.arrow", "a.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(
        InputError, match=r"--data .*: holds \*\.parquet and \*\.arrow: say which with a pattern"
    ):
        guess_source(str(tmp_path))
    assert guess_source(f"{tmp_path}/*.arrow").kind == "arrow"


def test_classes_are_a_file_or_a_label_space(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a")
    for known in (None, str(tmp_path / "names.txt"), "imagenet-22k"):
        assert known_classes(known) == known
    with pytest.raises(
        InputError,
        match=r"--classes imagenet-2k: neither a file nor a label set \(did you mean 'imagenet-2",
    ):
        known_classes("imagenet-2k")


def test_messages_in_the_words_of_the_command_line() -> None:
    said = in_options(
        "SOURCE.path: a, absolute or relative to data.root; SOURCE.classes; SOURCE.split; set"
        " data.unreadable to skip",
        "SOURCE",
    )
    assert said == "SOURCE: a; --classes; --split; give --unreadable skip"


@pytest.mark.parametrize("setting", ["image_column", "label_column"])
def test_a_key_that_no_option_sets_is_not_advised_as_one(setting: str) -> None:
    said = in_options(f"--data.{setting}: t has no column 'x': choose one of 'y'", "--data")
    assert said == (
        "--data: t has no column 'x': choose one of 'y'"
        f" (only recipes have the key {setting}; --data uses its default)"
    )


def test_a_key_of_a_stream_that_no_option_sets_is_said_to_be_a_recipes() -> None:
    said = in_options("--data: a.tar: no member is an image: name it in `image`", "--data")
    assert said.endswith("(only recipes have the key image; --data uses its default)")
    of_a_recipe = "data.train: a.tar: no member is an image: name it in `image`"
    assert in_options(of_a_recipe, "SOURCE") == of_a_recipe


def test_an_evaluation_does_not_advise_to_leave_the_labels_out() -> None:
    from distill.release.images import in_command_words

    for advice in (": give a file, or set labelled: false", ": set labelled: false"):
        assert "labelled: false" not in in_command_words(f"--data: no labels{advice}")
