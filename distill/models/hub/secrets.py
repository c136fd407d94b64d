"""Access tokens in files that are about to be published."""

import re
from collections.abc import Mapping
from pathlib import Path

from distill.errors import InputError

_KINDS = {
    "a token of the Hugging Face Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a token of GitHub": r"\bgh[opsur]_[A-Za-z0-9]{20,}",
    "a key of AWS": r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    "a secret key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a password in an address": r"://[^/\s:@\"']+:[^/\s@\"']+@",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}


_BINARY = (".safetensors", ".png", ".jpg", ".webp")
_SMALL_BYTES = 20 * 2**20


def refuse_secrets(files: Mapping[str, Path | bytes]) -> None:
    """Check that no file contains an access token, which everyone could read then.

    Args:
        files: by name, as they are to be published. Weights and pictures are not read.

    Raises:
        InputError: one does; the message names file and line, and does not repeat the token.
    """
    from huggingface_hub import get_token

    token = get_token()
    for name, content in files.items():
        for number, line in enumerate(_text(content).splitlines(), 1):
            kind = next((kind for kind, found in _KINDS.items() if re.search(found, line)), None)
            if kind is None and token and token in line:
                kind = "your token"
            if kind is not None:
                raise InputError(
                    f"{name}, line {number}: seems to hold {kind}, which publishing would show to"
                    " everyone: remove it there, and make a new one if others have seen it"
                )


def _text(content: Path | bytes) -> str:
    if isinstance(content, Path):
        if content.suffix in _BINARY or content.stat().st_size > _SMALL_BYTES:
            return ""
        content = content.read_bytes()
    return content.decode(errors="replace")
