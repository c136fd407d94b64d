"""Label spaces by name: the lists are timm's, pinned by content; lists are compared, in synsets and
in words, never counts.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from timm.data import ImageNetInfo
from timm.data.imagenet_info import _NUM_CLASSES_TO_SUBSET

from distill.data.classes import same_classes
from distill.data.label_sets import (
    NAMES,
    class_list,
    describe_space,
    known_as,
    mismatch,
    named_list,
    overlap,
    space_of_size,
    words_of,
)
from distill.data.sources import open_source
from distill.errors import InputError
from distill.recipe import schema

# SHA-256 over the lines: an order that changed would change what every label means.
PINNED = {
    "imagenet-1k": (1_000, "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"),
    "imagenet-12k": (11_821, "f6483e79f18a9b670d43d915ddba40bbcaf82cfc4e92a07bd44057b9d44935f3"),
    "imagenet-22k": (21_841, "0ae24538751973797b29d8dec412b2bdc61bc4ec3ecd081eba0735804236bbd2"),
    "imagenet-22k-ms": (21_842, "f2c7ac47500e1d1d70432d3cb2e2b2187c6880125439832bf4b4038f716ca278"),
    "imagenet-21k-goog": (
        21_843,
        "66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2",
    ),
    "imagenet-21k-miil": (
        11_221,
        "cd76d977daaa2f13a4a91fca0f53713f2f29675308d4ce0f0ee0e5b07a3164c6",
    ),
    "imagenet-21k-miil-w21": (
        10_450,
        "f49dde3d69946b8635586432f34f35985f807d168286ce5fde746aac3a7d94c8",
    ),
}
TEDDY = "n04399382"


def synsets(name: str) -> tuple[str, ...]:
    found = named_list(name)
    assert found is not None
    return found


def words(name: str) -> tuple[str, ...]:
    return tuple(words_of(synset) for synset in synsets(name))


def swapped(names: tuple[str, ...], i: int, j: int) -> tuple[str, ...]:
    out = list(names)
    out[i], out[j] = out[j], out[i]
    return tuple(out)


@pytest.mark.parametrize("name", PINNED)
def test_lists_are_what_they_were(name: str) -> None:
    count, digest = PINNED[name]
    assert len(set(synsets(name))) == count
    assert space_of_size(count) == name
    assert (
        hashlib.sha256("".join(f"{synset}\n" for synset in synsets(name)).encode()).hexdigest()
        == digest
    )


def test_every_name_is_pinned_and_every_list_of_timm_has_a_name() -> None:
    assert set(NAMES) == set(PINNED)
    for count, name in _NUM_CLASSES_TO_SUBSET.items():
        assert list(synsets(name)) == ImageNetInfo(name).label_names()
        assert len(synsets(name)) == count


def test_the_two_lists_of_miil_are_two_lists() -> None:
    """11,221 are of fall 2011, 10,450 of winter 2021, which took 771 synsets away and
    added none.
    """
    fall, winter = set(synsets("imagenet-21k-miil")), set(synsets("imagenet-21k-miil-w21"))
    assert winter < fall
    assert len(fall - winter) == 771


@pytest.mark.parametrize("name", NAMES)
def test_a_list_is_known_in_synsets_and_in_words(name: str) -> None:
    for classes in (synsets(name), words(name)):
        assert known_as(classes) == name
        assert known_as(list(classes)) == name
        assert known_as(swapped(classes, 3, 7)) is None
        assert known_as(classes[:-1]) is None


def test_counts_alone_say_nothing() -> None:
    assert known_as([f"class {i}" for i in range(1000)]) is None
    assert known_as([f"n{i:08}" for i in range(1000)]) is None
    assert known_as(()) is None


def test_words_may_differ_from_wordnets_in_a_few_places() -> None:
    """The Hub's ImageNet-1K calls the second crane "crane2": a list cannot name a class twice."""
    hub = list(words("imagenet-1k"))
    second = synsets("imagenet-1k").index("n03126707")
    assert hub[second] == "crane"
    hub[second] = "crane2"
    assert known_as(hub) == "imagenet-1k"
    hub[second] = words("imagenet-1k")[0]  # known, and another class's
    assert known_as(hub) is None
    assert (
        known_as(
            [f"a new {name}" if i < 11 else name for i, name in enumerate(words("imagenet-1k"))]
        )
        is None
    )


def test_spaces_in_words() -> None:
    assert describe_space(synsets("imagenet-22k")) == "imagenet-22k (21,841 classes)"
    assert describe_space(words("imagenet-1k")) == "imagenet-1k (1,000 classes)"
    assert (
        describe_space(swapped(synsets("imagenet-1k"), 3, 7))
        == "imagenet-1k in another order (1,000 classes)"
    )
    assert describe_space(["cat", "dog"]) == "2 classes of its own"
    assert describe_space(["cat"]) == "1 class of its own"
    assert describe_space(()) == "no classes"


def test_a_mismatch_names_both_spaces_and_the_first_class_that_differs() -> None:
    assert mismatch(["a", "b"], ("a", "b")) is None
    assert (
        mismatch(synsets("imagenet-22k"), synsets("imagenet-1k"))
        == "the teacher has imagenet-22k (21,841 classes), the data imagenet-1k (1,000 classes); "
        "class 0 is 'n00004475' for the teacher and 'n01440764' in the data"
    )
    assert (
        mismatch(["ant", "dog"], ["ant", "cat"], "stage 1", "the run")
        == "stage 1 has 2 classes of its own, the run 2 classes of its own; class 1 is 'dog' for"
        " stage 1 and 'cat' in the run"
    )
    for own, others, who in (
        (["ant"], ["ant", "cat"], "the data"),
        (["ant", "cat"], ["ant"], "the teacher"),
    ):
        assert str(mismatch(own, others)).endswith(f"from class 1 ('cat') on only {who} has names")


def test_a_class_list_is_a_name_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("ant\nbee\n\n")
    assert class_list("mine.txt", tmp_path, "data.train") == ("ant", "bee")
    assert class_list("imagenet-12k", tmp_path, "data.train") == synsets("imagenet-12k")
    assert class_list("imagenet-12k", tmp_path, "data.train") == synsets("imagenet-12k")
    (tmp_path / "imagenet-1k").mkdir()  # the images may well lie in a folder of that name
    assert class_list("imagenet-1k", tmp_path, "data.train") == synsets("imagenet-1k")
    (tmp_path / "imagenet-12k").write_text("a file comes first\n")
    assert class_list("imagenet-12k", tmp_path, "data.train") == ("a file comes first",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data\.train\.classes: cannot read .*imagenet-22K.*did you mean 'imagenet-22k'"),
        ("", "no lines"),
        ("a\n\nb\n", "an empty line"),
        ("a\nb\na\n", "names 'a' twice"),
    ],
)
def test_a_class_list_that_cannot_be(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "imagenet-22K").write_text(content)
    with pytest.raises(InputError, match=message):
        class_list("imagenet-22K", tmp_path, "data.train")


def test_a_folder_takes_its_classes_by_name(tmp_path: Path) -> None:
    for synset in ("n01443537", "n01440764"):
        (tmp_path / "train" / synset).mkdir(parents=True)
        (tmp_path / "train" / synset / "1.jpg").write_bytes(b"")
    source = open_source(
        schema.ImageFolderSpec(kind="image_folder", path="train", classes="imagenet-22k"),
        root=tmp_path,
        key="data.train",
    )
    assert source.classes == synsets("imagenet-22k")
    assert [source.classes[label] for label in source.labels] == ["n01440764", "n01443537"]


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("imagenet-12k", 993),
        ("imagenet-22k", 999),
        ("imagenet-22k-ms", 1000),
        ("imagenet-21k-goog", 999),
        ("imagenet-21k-miil", 991),
        ("imagenet-21k-miil-w21", 991),
    ],
)
def test_overlap_with_imagenet_1k(name: str, shared: int) -> None:
    mask = overlap(synsets(name), synsets("imagenet-1k"))
    assert mask.shape == (len(synsets(name)),)
    assert mask.dtype == np.bool_
    assert [s for s, is_shared in zip(synsets(name), mask, strict=True) if is_shared] == [
        s for s in synsets(name) if s in set(synsets("imagenet-1k"))
    ]
    assert mask.sum() == shared
    for other in (words("imagenet-1k"), [*words("imagenet-1k")[:-1], "what the Hub calls it"]):
        np.testing.assert_array_equal(overlap(synsets(name), other), mask)
    np.testing.assert_array_equal(overlap(words(name), synsets("imagenet-1k")), mask)


def test_overlap_is_as_long_as_the_first_list() -> None:
    mask = overlap(synsets("imagenet-1k"), synsets("imagenet-22k"))
    assert [
        synset for synset, shared in zip(synsets("imagenet-1k"), mask, strict=True) if not shared
    ] == [TEDDY]


def test_overlap_by_words_alone() -> None:
    """Part of a list: "crane" may be the bird or the machine, and counts as shared with either."""
    classes = ["tench, Tinca tinca", "crane", "goldfish, Carassius auratus"]
    assert overlap(classes, ["n01440764", "n03126707"]).tolist() == [True, True, False]
    assert overlap(["n02012849", "n03126707", "n01440764"], ["crane"]).tolist() == [
        True,
        True,
        False,
    ]


def test_names_are_compared_by_what_they_say() -> None:
    assert mismatch(["01", "2"], ["1", "2"]) is None
    assert str(mismatch(["01", "2"], ["1", "3"])).endswith(
        "class 1 is '2' for the teacher and '3' in the data"
    )
    assert overlap(["caf\u00e9", "tea", "7"], ["cafe\u0301", "07"]).tolist() == [True, False, True]


def test_a_list_that_lacks_classes_of_the_other_is_reported_to_lack_them() -> None:
    with pytest.raises(InputError, match=r"Give both") as refused:
        same_classes(("a", "b", "c", "d"), ("a", "c"), "data.train", "data.eval")
    assert ". data.eval lacks 'b', 'd' of data.train. Give both the same list" in str(refused.value)
    with pytest.raises(InputError, match=r"\. data\.train lacks '01' of data\.eval\. Give"):
        same_classes(("2", "3"), ("01", "2", "3"), "data.train", "data.eval")
    with pytest.raises(InputError, match=r"'b' for data\.train and 'c' in data\.eval\. Give both"):
        same_classes(("a", "b"), ("a", "c"), "data.train", "data.eval")


def test_overlap_by_names_of_ones_own() -> None:
    assert overlap(["shirt", "boot", "hat"], ["boot", "coat"]).tolist() == [
        False,
        True,
        False,
    ]  # coat is WordNet's too
    assert overlap(["hen", "cock"], ["hen"]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("classes", "others", "message"),
    [
        (
            ["n01440764", "n01443537"],
            ["boot", "hat"],
            r"one speaks WordNet's language, .*2 classes of its own.*'boot'",
        ),
        (["hat"], ["n01440764"], r"1 class of its own, such as 'hat'"),
        (["0", "1"], ["0", "1"], "numbers for class names"),
        (["n01440764"], ["0", "1"], "numbers for class names"),
        ((), ["boot"], "no class names"),
        (["boot"], (), "no class names"),
    ],
)
def test_overlap_refuses_what_it_cannot_compare(
    classes: list[str], others: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        overlap(classes, others)


def test_one_space_in_synsets_and_in_words_is_the_same() -> None:
    from distill.data.label_sets import named_list, same_space, words_of

    synsets = named_list("imagenet-1k")
    assert synsets
    words = [words_of(name) for name in synsets]
    assert same_space(synsets, words)
    assert same_space(("a", "b"), ["a", "b"])
    assert not same_space(("a", "b"), ("b", "a"))
    assert not same_space(synsets, [words[1], words[0], *words[2:]])
    assert not same_space(synsets, named_list("imagenet-22k") or ())


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_a_set_that_names_its_classes_in_words_takes_the_synsets(kind: str, tmp_path: Path) -> None:
    import datasets

    from distill.data.label_sets import named_list, words_of
    from distill.data.sources import open_source
    from distill.recipe import schema

    synsets = named_list("imagenet-1k") or ()
    words = [words_of(name) for name in synsets]
    words = [
        f"{word}2" if word in words[:i] else word for i, word in enumerate(words)
    ]  # as the Hub's "crane2"
    features = datasets.Features(
        {"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=words)}
    )
    rows = {"image": [b"x", b"y"], "label": [7, 999]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    path = str(tmp_path / "train.parquet")
    spec: schema.SourceSpec = (
        schema.TableSpec(kind="parquet", path=path, classes="imagenet-1k")
        if kind == "parquet"
        else schema.StreamSpec(kind="stream", path=path, classes="imagenet-1k")
    )
    source = open_source(spec, tmp_path, shards=schema.ShardsSpec(cache=str(tmp_path / "cache")))
    assert source.classes == synsets
    assert source.labels[np.array([0, 1])].tolist() == [7, 999]
