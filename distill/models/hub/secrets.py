"""Access tokens in files that are about to be published."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from distill.errors import InputError

_KINDS = {
    "a token of the Hugging Face Hub": rb"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a token of GitHub": rb"\b(?:gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "a token of GitLab": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "a token of Slack": rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a key of AWS": rb"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    "a key of Google": rb"\bAIza[A-Za-z0-9_-]{35}",
    "a secret key": rb"\bsk-[A-Za-z0-9_-]{20,}",
    # Visible ASCII alone: in gigabytes of numbers, any other bytes are found now and then.
    "a password in an address": rb"://[!#$%&(-.0-9;-?A-~]+:[!#$%&(-.0-9:-?A-~]+@",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_FOUND = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
# One of these is in each of them. To look for them first is several times as fast, which counts for
# checkpoints of gigabytes.
_MARKS = {
    "a token of the Hugging Face Hub": (b"hf_", b"api_org_"),
    "a token of GitHub": (b"gho_", b"ghp_", b"ghr_", b"ghs_", b"ghu_", b"github_pat_"),
    "a token of GitLab": (b"glpat-",),
    "a token of Slack": (b"xox",),
    "a key of AWS": (b"AKIA", b"ASIA"),
    "a key of Google": (b"AIza",),
    "a secret key": (b"sk-",),
    "a password in an address": (b"://",),
    "a private key": (b"-----BEGIN ",),
}

# Each part begins with the end of the part before, where a token may have been cut.
_PART_BYTES, _OVERLAP_BYTES = 2**20, 2**10


def refuse_secrets(files: Mapping[str, Path | bytes]) -> None:
    """Check that no file contains an access token, which everyone could read then.

    Args:
        files: by name, as they are to be published. Weights and pictures are not read.

    Raises:
        InputError: one does; the message names file and line, and does not repeat the token.
    """
    from huggingface_hub import get_token

    token = (get_token() or "").encode()
    for name, content in files.items():
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as opened:
            if _is_binary(name, opened):
                continue
            if (found := _find(opened, token)) is not None:
                number, kind = found
                raise InputError(
                    f"{name}, line {number}: seems to hold {kind}, which publishing would show to"
                    " everyone: remove it there, and make a new one if others have seen it"
                )


def _find(opened: BinaryIO, token: bytes) -> tuple[int, str] | None:
    """Return the line and the kind of the first token in a file."""
    line, part = 1, b""
    while new := opened.read(_PART_BYTES):
        # Lines are counted up to the bytes that the next part begins with.
        line += part[:-_OVERLAP_BYTES].count(b"\n")
        part = part[-_OVERLAP_BYTES:] + new
        places: dict[int, str] = {}
        for kind, marks in _MARKS.items():
            if any(mark in part for mark in marks) and (hit := _FOUND[kind].search(part)):
                places[hit.start()] = kind
        if token and token in part:
            places.setdefault(part.index(token), "your token")
        if places:
            first = min(places)
            return line + part.count(b"\n", 0, first), places[first]
    return None


def _is_binary(name: str, opened: BinaryIO) -> bool:
    """Return whether a file is weights or a picture, by its name and its first bytes."""
    first = opened.read(12)
    opened.seek(0)
    match Path(name).suffix.lower():
        case ".safetensors":  # the length of its header, and the header in JSON
            return first[8:9] == b"{"
        case ".png":
            return first.startswith(b"\x89PNG\r\n\x1a\n")
        case ".jpg" | ".jpeg":
            return first.startswith(b"\xff\xd8\xff")
        case ".webp":
            return first.startswith(b"RIFF") and first.endswith(b"WEBP")
    return False
