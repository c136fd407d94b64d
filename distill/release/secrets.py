"""Access tokens in files that are about to be published."""

import re
from collections.abc import Mapping

from distill.errors import InputError

_KINDS = {
    "a token of the Hugging Face Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a token of GitHub": r"\bgh[opsur]_[A-Za-z0-9]{20,}",
    "a key of AWS": r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    "a secret key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a password in an address": r"://[^/\s:@\"']+:[^/\s@\"']+@",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}


def refuse_secrets(texts: Mapping[str, str], token: str | None) -> None:
    """Check that no file contains an access token, which everyone could read then.

    Args:
        texts: the contents of the files, by name.
        token: that of the user.

    Raises:
        InputError: one does; the message names file and line, and does not repeat the token.
    """
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            kind = next((kind for kind, found in _KINDS.items() if re.search(found, line)), None)
            if kind is None and token and token in line:
                kind = "your token"
            if kind is not None:
                raise InputError(
                    f"{name}, line {number}: seems to hold {kind}, which publishing would show to"
                    " everyone: remove it there, and make a new one if others have seen it"
                )
