"""What makes small sources and images."""

from collections.abc import Callable

import pytest
from memory import MemorySource, encode


@pytest.fixture(scope="session")
def memory_source() -> type[MemorySource]:
    return MemorySource


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    return encode
