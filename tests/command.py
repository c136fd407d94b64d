"""What a test knows of a command line that it ran."""

from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]
