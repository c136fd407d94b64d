"""A clock that tests set."""


class Ticking:
    """A clock by hand in place of the time module."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now
