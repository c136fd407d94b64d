"""Label spaces: counts, then names in order, with WordNet between synsets and words."""

import pytest
from timm.data import ImageNetInfo

from distill.data.label_sets import named_list
from distill.errors import InputError
from distill.models.labels import check_label_space, comparable_classes

INFO = ImageNetInfo("imagenet-1k")
SYNSETS = list(INFO.label_names())
WORDS = INFO.label_descriptions()


def check(recorded: list[str] | None, num_teacher: int, data: list[str]) -> None:
    check_label_space(comparable_classes(recorded, num_teacher, data), num_teacher, data)


def swapped(names: list[str], i: int, j: int) -> list[str]:
    out = list(names)
    out[i], out[j] = out[j], out[i]
    return out


def test_counts_must_agree() -> None:
    with pytest.raises(InputError, match="the teacher's head has 7 classes, the data 10:"):
        check_label_space(None, 7, ["a"] * 10)
    check_label_space(None, 2, ["a", "b"])


def test_counts_that_differ_are_given_their_names() -> None:
    with pytest.raises(
        InputError, match=r"head has 21843 classes \(as imagenet-21k-goog has\), the data 1000 \(imagenet-1k\):"
    ):
        check(None, 21_843, SYNSETS)
    with pytest.raises(
        InputError, match=r"head has 1000 classes, the data 2:"
    ):  # its own list says it is not ImageNet-1K
        check([f"class {i}" for i in range(1000)], 1000, ["a", "b"])


def test_winter_21_is_compared_as_well_though_timm_has_no_info_of_it() -> None:
    winter = list(named_list("imagenet-21k-miil-w21") or ())
    check(None, 10_450, winter)
    with pytest.raises(InputError, match="imagenet-21k-miil-w21 in another order"):
        check(None, 10_450, swapped(winter, 3, 7))


def test_both_spaces_are_named() -> None:
    message = r"the teacher has imagenet-1k \(1,000 classes\), the data 1,000 classes of its own; class 999 is"
    with pytest.raises(InputError, match=message):
        check(SYNSETS, 1000, [*SYNSETS[:-1], "n00004475"])


def test_the_first_difference_is_named() -> None:
    with pytest.raises(InputError, match="class 1 is 'dog' for the teacher and 'cat' in the data"):
        check_label_space(["ant", "dog", "cat"], 3, ["ant", "cat", "dog"])
    check_label_space(["ant", "dog"], 2, ["ant", "dog"])


def test_a_list_that_does_not_fit_the_head_is_refused() -> None:
    with pytest.raises(InputError, match="list names 2 classes, its head has 3"):
        check_label_space(["a", "b"], 3, ["a", "b", "c"])


def test_imagenet_heads_are_compared_with_synsets() -> None:
    check(None, 1000, SYNSETS)
    with pytest.raises(InputError, match=f"class 3 is '{SYNSETS[3]}' for the teacher and '{SYNSETS[7]}'"):
        check(None, 1000, swapped(SYNSETS, 3, 7))


def test_imagenet_heads_are_compared_with_words() -> None:
    check(None, 1000, WORDS)
    with pytest.raises(InputError, match="class 3 is "):
        check(None, 1000, swapped(WORDS, 3, 7))
    other_words = [*WORDS[:5], "rooster, as somebody else writes it", *WORDS[6:]]
    check(None, 1000, other_words)


def test_other_data_with_as_many_classes_pass_by_count() -> None:
    check(None, 1000, [f"class {i}" for i in range(1000)])
    check(None, 1000, [*WORDS[500:510], *(f"class {i}" for i in range(990))])  # a few words in common, elsewhere
    check(None, 10, [f"class {i}" for i in range(10)])


def test_recorded_synsets_meet_words_and_the_other_way_round() -> None:
    check(SYNSETS, 1000, WORDS)
    check(WORDS, 1000, SYNSETS)
    with pytest.raises(InputError, match="class 3"):
        check(SYNSETS, 1000, swapped(WORDS, 3, 7))
    with pytest.raises(InputError, match="class 3"):
        check(WORDS, 1000, swapped(SYNSETS, 3, 7))


def test_what_only_looks_like_synsets_is_no_error_of_ours() -> None:
    check(["n99999998", "n99999999"], 2, ["a", "b"])
    with pytest.raises(InputError, match="class 0 is 'a' for the teacher and 'n99999998'"):
        check(["a", "b"], 2, ["n99999998", "n99999999"])


def test_recorded_names_are_strict() -> None:
    with pytest.raises(InputError, match="class 0 is 'A' for the teacher and 'a'"):
        check(["A", "b"], 2, ["a", "b"])
    with pytest.raises(InputError, match="class 1 is 'n99999999'"):
        check(["n01440764", "n99999999"], 2, ["n01440764", "n01443537"])
