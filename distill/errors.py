"""The exception for wrong input, which is shown as a message instead of a traceback."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class InputError(ValueError):
    """The user's input is wrong: a recipe key, a path, a checkpoint, the environment.

    The message names the key or file and the fix. The command line prints it and exits with code 2.
    """


def printable(text: str) -> str:
    """Returns a name in visible characters: control and direction marks as \\x1b, bytes that are
    not UTF-8 as \\xff.
    """
    return text if text.isprintable() else "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name from os.fsdecode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """Returns " (did you mean 'a' or 'b'?)", or an empty text if no known name is similar."""
    matches = get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(m) for m in matches)}?)" if matches else ""


@contextmanager
def prefix_errors(key: str) -> Iterator[None]:
    """Adds a recipe key to the message of an InputError that lacks it, since lower layers do not
    know the key.
    """
    try:
        yield
    except InputError as error:
        if key in str(error):
            raise
        raise InputError(f"{key}: {error}") from error
