"""Do the teacher and the data mean the same thing by class 7? Lists are compared where both are known, else counts."""

from collections.abc import Sequence

from distill.data.label_sets import are_synsets, known_as, mismatch, named_list, space_of_size, words_of
from distill.errors import InputError


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
        own = known_as(teacher_classes) if teacher_classes else space_of_size(num_teacher)
        data = known_as(data_classes)
        raise InputError(
            f"{who}'s head has {num_teacher} classes{f' (as {own} has)' if own else ''}, "
            f"the data {len(data_classes)}{f' ({data})' if data else ''}: {mend}"
        )
    if teacher_classes is None:
        return
    if len(teacher_classes) != num_teacher:
        raise InputError(f"{who}'s list names {len(teacher_classes)} classes, its head has {num_teacher}")
    different = mismatch(teacher_classes, data_classes, who)
    if different is not None:
        names = " (teacher.classes names a list)" if who == "the teacher" else ""
        raise InputError(f"{who}'s classes are not the data's: {different}; the order of the labels must agree{names}")


def comparable_classes(
    recorded: Sequence[str] | None, num_teacher: int, data_classes: Sequence[str]
) -> list[str] | None:
    """The teacher's class names in the language of the data, or None where the two cannot be compared.

    Nothing recorded and a head of an ImageNet size (1000, 10450, 21841 ...) means ImageNet's synsets, as far as the data name synsets
    or WordNet's words themselves. Words differ between sources in places ("maillot, tank suit"), so against data in words
    a class that WordNet's list does not know counts as agreeing: what is refused is a known name at another index.
    """
    if len(data_classes) != num_teacher:
        return list(recorded) if recorded is not None else None
    own = recorded
    if own is None:
        likely = space_of_size(num_teacher)
        if likely is None:
            return None
        own = named_list(likely) or ()
    own_synsets, data_synsets = are_synsets(own), are_synsets(data_classes)
    if own_synsets and not data_synsets:
        words = [words_of(name) for name in own]
        known = set(words)
        if 2 * sum(name in known for name in data_classes) < num_teacher:
            return None
        return [word if name in known else name for word, name in zip(words, data_classes, strict=True)]
    if data_synsets and not own_synsets:
        return [data if words_of(data) == name else name for name, data in zip(own, data_classes, strict=True)]
    return list(own)
