"""The one exception that is shown to a user as a sentence instead of a traceback."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave is wrong: a recipe key, a path, a checkpoint, the environment.

    The message names the key or file and the mend. The command line prints it as one panel and
    exits with code 2.
    """


def printable(text: str) -> str:
    """A name from outside in one line of visible characters: control and direction marks as \\x1b,
    bytes that are not UTF-8 as \\xff."""
    return text if text.isprintable() else "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """A question "(did you mean 'a' or 'b'?)" with a leading space, or nothing when no known name
    is close.
    """
    matches = get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(m) for m in matches)}?)" if matches else ""


@contextmanager
def prefix_errors(key: str) -> Iterator[None]:
    """Put `key` before the message of an InputError that does not name it: rooms below know models
    and files, not whose.
    """
    try:
        yield
    except InputError as error:
        if key in str(error):
            raise
        raise InputError(f"{key}: {error}") from error
