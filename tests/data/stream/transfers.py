"""Transfers of one file from a server, for tests."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import FolderServer

from distill.data.stream.transport import Transport

SIZE = 3_500_017  # several pieces, and no round number
CONTENT = np.random.default_rng(0).bytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Transport(retries=2, timeout_s=60, first_wait_s=0.001)


def fetched(
    server: FolderServer, path: Path, transport: Transport = QUICK, **promised: Any
) -> bytes:
    transport.fetch(f"{server.url}/a.bin", path, **promised)
    return path.read_bytes()


def failure(act: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        act()
    return str(caught.value)
