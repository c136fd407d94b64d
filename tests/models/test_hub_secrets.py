"""Files that are published hold no access token."""

import os
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.models.hub import secrets
from distill.models.hub.secrets import refuse_secrets

# In two parts, or a scanner of this repository would find them.
SECRETS = [
    "hf" + "_" + "a" * 34,
    "gh" + "p_" + "b" * 36,
    "github" + "_pat_11ABC_" + "c" * 40,
    "gl" + "pat-" + "d" * 20,
    "xo" + "xb-1234567890-abcdef",
    "xo" + "xp-1234567890-abcdef",
    "AI" + "za" + "e" * 35,
    "AK" + "IA" + "F" * 16,
    "https://me:" + "secret@example.org/x",
    "-----BEGIN RSA " + "PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_each_kind_is_found(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"a": 1}}\n{{"b": "{secret}"}}\n')
    for content in (file, file.read_bytes()):
        with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: seems to hold") as refused:
            refuse_secrets({"metrics.jsonl": content})
        assert secret not in str(refused.value)


def test_a_large_file_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    line = b"x" * 99 + b"\n"
    file.write_bytes(line * (22 * 2**20 // 100) + SECRETS[0].encode())
    with pytest.raises(InputError, match=r"line 230687: seems to hold a token of the Hugging Face"):
        refuse_secrets({"report.html": file})


def test_a_token_across_two_parts_of_a_long_line() -> None:
    content = b" " * (secrets._PART_BYTES - 9) + SECRETS[2].encode()
    with pytest.raises(InputError, match="line 1: seems to hold a token of GitHub"):
        refuse_secrets({"report.html": content})


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("model.safetensors", b"\x40\0\0\0\0\0\0\0{"),
        ("curves.png", b"\x89PNG\r\n\x1a\n"),
        ("curves.JPG", b"\xff\xd8\xff\xe0"),
        ("curves.webp", b"RIFF\0\0\0\0WEBP"),
    ],
)
def test_only_what_begins_like_weights_or_a_picture_is_not_read(name: str, first: bytes) -> None:
    content = b" " + SECRETS[0].encode()
    refuse_secrets({name: first + content})
    with pytest.raises(InputError, match="seems to hold"):
        refuse_secrets({name: content})
    with pytest.raises(InputError, match="seems to hold"):
        refuse_secrets({"notes.txt": first + content})


def test_numbers_are_no_secrets() -> None:
    refuse_secrets({"checkpoint.distcp": os.urandom(8 * 2**20), "a.md": b"see https://a.org/b@c"})
