"""Local files, and all that fsspec opens: s3://, gs://, memory://."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from distill.data.records import first_line
from distill.data.stream.byte_stream import PIECE_BYTES, ByteStream, TransientError
from distill.errors import InputError

# The package that a scheme needs, if its name differs.
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}
# Properties of a local file that change by reading it.
_FLEETING = {"atime", "nlink"}


@contextmanager
def open_file(url: str, start: int, end: int | None, again: bool) -> Iterator[ByteStream]:
    """Bytes [start, end) of a file. again: not the first try, so the file system's cached listings
    are dropped.

    Timeouts are the file system's own.

    Raises:
        TransientError: what another try may fix.
        InputError: no such file or file system, or no permission.
    """
    with _explained(url):
        import fsspec  # type: ignore[import-untyped]

        fs, path = fsspec.url_to_fs(url)
        if again:
            fs.invalidate_cache()
        info = fs.info(path)
        if info["type"] == "directory":
            raise InputError(f"{url} is a folder: give a file")
        version = str(
            sorted((key, str(value)) for key, value in info.items() if key not in _FLEETING)
        )
    total = info.get("size")
    if end is not None:
        yield ByteStream(start, total, version, _range(fs, path, start, end, total, url))
        return
    with _explained(url):
        file = fs.open(path, "rb")
    with file:
        yield ByteStream(start, total, version, _pieces(file, start, url))


def _range(
    fs: Any, path: str, start: int, end: int, total: int | None, url: str
) -> Iterator[bytes]:
    if total is None or start < total:  # object stores refuse a range beyond the end
        with _explained(url):
            content = bytes(fs.cat_file(path, start, end))
        yield content


def _pieces(file: IO[bytes], start: int, url: str) -> Iterator[bytes]:
    with _explained(url):
        file.seek(start)
    while True:
        with _explained(url):
            piece = file.read(PIECE_BYTES)
        if not piece:
            return
        yield bytes(piece)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    scheme = url.partition("://")[0] if "://" in url else ""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{url} does not exist: fix the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{url} is a folder: give a file") from error
    except PermissionError as error:
        raise InputError(
            f"{url} may not be read ({first_line(error)}): fix its permissions or your credentials"
        ) from error
    except ImportError as error:
        package = _PACKAGES.get(scheme, scheme)
        raise InputError(
            f"{url}: {scheme}:// needs a package that is not installed: pip install {package}"
        ) from error
    except ValueError as error:
        if "rotocol not known" in str(error):
            raise InputError(f"{url}: fsspec knows no {scheme}://: fix the scheme") from error
        raise TransientError(first_line(error)) from error
    except (
        Exception
    ) as error:  # the object stores' packages raise classes of their own, which are not OSError
        raise TransientError(f"{type(error).__name__}: {first_line(error)}") from error
