"""Label spaces: counts, then names in order, with WordNet between synsets and words."""

import pytest
from timm.data import ImageNetInfo

from distill.data.label_sets import named_list
from distill.errors import InputError
from distill.models.labels import match_classes, match_teacher

INFO = ImageNetInfo("imagenet-1k")
SYNSETS = list(INFO.label_names())
WORDS = INFO.label_descriptions()


def check(recorded: list[str] | None, num_teacher: int, data: list[str]) -> None:
    match_teacher(recorded, num_teacher, data)


def swapped(names: list[str], i: int, j: int) -> list[str]:
    out = list(names)
    out[i], out[j] = out[j], out[i]
    return out


def test_counts_must_agree() -> None:
    with pytest.raises(InputError, match="the teacher's head has 7 classes, the data 10:"):
        match_teacher(None, 7, ["a"] * 10)
    match_teacher(None, 2, ["a", "b"])


def test_counts_that_differ_are_given_their_names() -> None:
    with pytest.raises(
        InputError,
        match=(
            r"head has 21843 classes \(as imagenet-21k-goog has\), the data 1000 \(imagenet-1k\):"
        ),
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
    message = (
        r"the teacher has imagenet-1k \(1,000 classes\), the data 1,000 classes of its own; class"
        r" 999 of the data"
    )
    with pytest.raises(InputError, match=message):
        check(SYNSETS, 1000, [*SYNSETS[:-1], "n00004475"])


def test_the_first_difference_is_named() -> None:
    with pytest.raises(InputError, match="class 1 is 'dog' for the teacher and 'cat' in the data"):
        match_teacher(["ant", "dog", "cat"], 3, ["ant", "cat", "dog"])
    match_teacher(["ant", "dog"], 2, ["ant", "dog"])


def test_a_list_that_does_not_fit_the_head_is_refused() -> None:
    with pytest.raises(InputError, match="list names 2 classes, its head has 3"):
        match_teacher(["a", "b"], 3, ["a", "b", "c"])


def test_imagenet_heads_are_compared_with_synsets() -> None:
    check(None, 1000, SYNSETS)
    with pytest.raises(
        InputError, match=f"class 3 is '{SYNSETS[3]}' for the teacher and '{SYNSETS[7]}'"
    ):
        check(None, 1000, swapped(SYNSETS, 3, 7))


def test_imagenet_heads_are_compared_with_words() -> None:
    check(None, 1000, WORDS)
    with pytest.raises(InputError, match="class 3 is "):
        check(None, 1000, swapped(WORDS, 3, 7))
    other_words = [*WORDS[:5], "rooster, as others write it", *WORDS[6:]]
    check(None, 1000, other_words)


def test_other_data_with_as_many_classes_pass_by_count() -> None:
    check(None, 1000, [f"class {i}" for i in range(1000)])
    check(
        None, 1000, [*WORDS[500:510], *(f"class {i}" for i in range(990))]
    )  # a few words in common, elsewhere
    check(None, 10, [f"class {i}" for i in range(10)])


def test_recorded_synsets_meet_words_and_the_other_way_round() -> None:
    check(SYNSETS, 1000, WORDS)
    check(WORDS, 1000, SYNSETS)
    with pytest.raises(InputError, match="class 3"):
        check(SYNSETS, 1000, swapped(WORDS, 3, 7))
    with pytest.raises(InputError, match="class 3"):
        check(WORDS, 1000, swapped(SYNSETS, 3, 7))


def test_what_only_looks_like_synsets_is_refused_by_name() -> None:
    for own, data in (
        (["n99999998", "n99999999"], ["a", "b"]),
        (["a", "b"], ["n99999998", "n99999999"]),
    ):
        with pytest.raises(
            InputError, match=f"class 0 is '{own[0]}' for the teacher and '{data[0]}'"
        ):
            check(own, 2, data)


def test_recorded_names_are_strict() -> None:
    with pytest.raises(InputError, match="class 0 is 'A' for the teacher and 'a'"):
        check(["A", "b"], 2, ["a", "b"])
    with pytest.raises(
        InputError, match="class 1 of the data, 'n01443537', is none of the teacher's"
    ):
        check(["n01440764", "n99999999"], 2, ["n01440764", "n01443537"])


# ---- what a match comes to -----------------------------------------------------------------------


def logits(
    recorded: list[str] | None, num_logits: int, data: list[str], **options: bool
) -> tuple[str, list[int]]:
    match = match_classes(recorded, num_logits, data, who="net", **options)
    return match.how, match.logits.tolist()


def test_numbers_are_indices_of_the_logits_whatever_their_order_and_number() -> None:
    twelve = [str(i) for i in range(12)]
    assert logits(None, 12, twelve) == ("numbers", list(range(12)))
    assert logits(None, 12, sorted(twelve)) == ("numbers", [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9])
    assert logits(None, 12, ["3", "07"]) == ("numbers", [3, 7])
    assert logits(SYNSETS, 1000, [str(i) for i in range(1000)]) == ("numbers", list(range(1000)))
    with pytest.raises(
        InputError,
        match="net's head has 12 classes, 0 to 11, and the data's classes are numbers up to 12",
    ):
        logits(None, 12, [str(i) for i in range(1, 13)])


def test_a_list_that_the_user_gave_says_the_order_of_numbers() -> None:
    one_based = [str(i) for i in range(1, 13)]
    assert logits(None, 12, one_based, order_given=True) == ("order", list(range(12)))
    text = sorted(str(i) for i in range(12))  # as torchvision's ImageFolder has counted them
    assert logits(None, 12, text, order_given=True) == ("order", list(range(12)))


def test_models_that_name_numbers_are_compared_by_name() -> None:
    text = sorted(str(i) for i in range(12))  # an export of a version that sorted them as text
    assert logits(text, 12, ["0", "2", "10"]) == ("names", [0, 4, 2])
    with pytest.raises(InputError, match="class '12' is none of the model's"):
        logits(text, 12, ["0", "12"])


def test_some_of_the_classes_in_any_order_are_found_by_name() -> None:
    assert logits(["ant", "bee", "cat"], 3, ["cat", "ant"]) == ("names", [2, 0])
    assert logits(["caf\u00e9", "x"], 2, ["x", "cafe\u0301 "]) == ("names", [1, 0])
    with pytest.raises(
        InputError, match=r"head has 3 classes, the data 2.*class 'cow' is none of the model's"
    ):
        logits(["ant", "bee", "cat"], 3, ["ant", "cow"])


def test_some_of_imagenets_classes_are_found_by_synset_or_words() -> None:
    for recorded in (None, SYNSETS, WORDS):
        assert logits(recorded, 1000, SYNSETS[700:600:-1])[1] == list(range(700, 600, -1))
    assert logits(SYNSETS, 1000, [WORDS[5], WORDS[3]]) == ("synsets", [5, 3])
    with pytest.raises(InputError, match="class 0 of the data, 'crane', is 2 classes of net"):
        logits(SYNSETS, 1000, ["crane", WORDS[3]])


def test_pretrained_heads_are_imagenets_and_other_names_are_refused() -> None:
    others = [f"class {i:03}" for i in range(1000)]
    assert logits(None, 1000, others) == ("order", list(range(1000)))
    match_teacher(None, 1000, SYNSETS, pretrained=True)
    with pytest.raises(
        InputError, match=r"imagenet-1k.*class 0 is 'n01440764' for the teacher and 'class 000'"
    ):
        match_teacher(None, 1000, others, pretrained=True)


def test_names_that_torchvision_and_timm_sort_otherwise_need_a_list_when_the_model_has_none() -> (
    None
):
    folders = sorted(f"class{i}" for i in range(1, 13))
    with pytest.raises(
        InputError, match=r"class 1 is 'class10' as text .* and 'class2' in natural order"
    ):
        logits(None, 12, folders)
    with pytest.raises(InputError, match=r"class 0 is 'Bee' as text .* and 'ant' in natural order"):
        logits(None, 2, ["Bee", "ant"])
    assert logits(None, 12, folders, order_given=True)[0] == "order"
    assert logits(folders, 12, folders)[0] == "names"
    assert logits(None, 3, ["ant", "bee", "cat"])[0] == "order"


def test_an_assumption_is_reported_with_the_first_classes() -> None:
    said = match_classes(None, 6, list("abcdef"), who="net").describe()
    assert said.startswith(
        "classes of net: nothing names the classes of the logits: ASSUMED to be in the order of the"
        " data's"
    )
    assert said.endswith(": a = 0, b = 1, c = 2, d = 3, e = 4, ...")
    assert "2 of 12 classes" in match_classes(None, 12, ["3", "7"]).describe()


def test_one_class_and_no_names_are_refused() -> None:
    with pytest.raises(InputError, match="head has 1 class: there is nothing to tell apart"):
        logits(["a"], 1, ["a"])
    with pytest.raises(InputError, match="no class names"):
        logits(None, 3, [])
