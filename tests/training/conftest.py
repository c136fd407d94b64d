"""Images without labels for runs in stages."""

from pathlib import Path

import pytest
from shards import images_of, write_tars

from distill.data.fashion import EmbeddedFashionMnist


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images without labels in nine tar shards."""
    folder = tmp_path_factory.mktemp("foreign")
    write_tars(folder, images_of(EmbeddedFashionMnist("train"), range(0, 3000, 10)), 37)
    return folder
