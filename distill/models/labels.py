"""Do the teacher and the data mean the same thing by class 7? Lists are compared where both are known, else counts."""

import re
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo, infer_imagenet_subset

from distill.errors import InputError

_SYNSET = re.compile(r"n\d{8}")


def check_label_space(
    teacher_classes: Sequence[str] | None, num_teacher: int, data_classes: Sequence[str], who: str = "the teacher"
) -> None:
    """Refuse a teacher whose logits do not stand in the order of the data's classes.

    Args:
        teacher_classes: names in the order of the teacher's logits; None when nobody recorded them.
        num_teacher: number of the teacher's logits.
        data_classes: names in the order of the labels.
        who: the model in messages, where it is not a teacher.

    Raises:
        InputError: the counts differ, or the first class that differs.
    """
    if num_teacher != len(data_classes):
        mend = (
            "a teacher speaks of its own classes only; choose one trained on this data's classes, or fine-tune it on them first"
            if who == "the teacher"
            else "a model is judged on its own classes; choose that data, or give the whole class list where a folder holds only some"
        )
        raise InputError(f"{who}'s head has {num_teacher} classes, the data {len(data_classes)}: {mend}")
    if teacher_classes is None:
        return
    if len(teacher_classes) != num_teacher:
        raise InputError(f"{who}'s list names {len(teacher_classes)} classes, its head has {num_teacher}")
    for index, (own, data) in enumerate(zip(teacher_classes, data_classes, strict=True)):
        if own != data:
            names = " (teacher.classes names a file, a class a line)" if who == "the teacher" else ""
            raise InputError(
                f"{who}'s classes are not the data's: class {index} is {own!r} for {who} and {data!r} in the data; "
                f"the order of the labels must agree{names}"
            )


def comparable_classes(
    recorded: Sequence[str] | None, num_teacher: int, data_classes: Sequence[str]
) -> list[str] | None:
    """The teacher's class names in the language of the data, or None where the two cannot be compared.

    Nothing recorded and a head of an ImageNet size (1000, 11821, 21841 ...) means ImageNet's synsets, as far as the data name synsets
    or WordNet's words themselves. Words differ between sources in places ("maillot, tank suit"), so against data in words
    a class that WordNet's list does not know counts as agreeing: what is refused is a known name at another index.
    """
    if len(data_classes) != num_teacher:
        return list(recorded) if recorded is not None else None
    own = recorded
    if own is None:
        subset = infer_imagenet_subset({"num_classes": num_teacher})
        if subset is None:
            return None
        own = _info(subset).label_names()
    own_synsets, data_synsets = _are_synsets(own), _are_synsets(data_classes)
    if own_synsets and not data_synsets:
        words = [_words(name) for name in own]
        known = set(words)
        if 2 * sum(name in known for name in data_classes) < num_teacher:
            return None
        return [word if name in known else name for word, name in zip(words, data_classes, strict=True)]
    if data_synsets and not own_synsets:
        return [data if _words(data) == name else name for name, data in zip(own, data_classes, strict=True)]
    return list(own)


def _are_synsets(names: Sequence[str]) -> bool:
    return all(_SYNSET.fullmatch(name) for name in names)


def _words(synset: str) -> str:
    try:
        return str(_info("imagenet-22k").label_name_to_description(synset))
    except KeyError:  # formed like a synset, but none of WordNet's
        return synset


@cache
def _info(subset: str) -> ImageNetInfo:
    return ImageNetInfo(subset)
