"""Writes a recipe as YAML with a reason on each line."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from distill.recipe.text import dump

_WIDTH = 100


@dataclass(frozen=True)
class Line:
    """A dotted key, its value, and the reason."""

    key: str
    value: Any
    why: str = ""


def page(head: Sequence[str], lines: Iterable[Line]) -> str:
    """Returns YAML with a comment on each line, in the order of `lines`, with the keys of a section
    together.

    Args:
        head: the comment lines at the top.
    """
    text = [f"# {_plain(line)}" for line in head]
    tree: dict[str, Any] = {}
    for line in lines:
        *sections, last = line.key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = line
    return "\n".join([*text, *_section(tree, "")]) + "\n"


def _section(tree: dict[str, Any], indent: str) -> list[str]:
    text = []
    for key, value in tree.items():
        if not isinstance(value, Line):
            text += [f"{indent}{key}:", *_section(value, f"{indent}  ")]
            continue
        line = f"{indent}{key}: {_scalar(value.value)}"
        why = _plain(value.why)
        if not why:
            text.append(line)
        elif len(line) + 4 + len(why) <= _WIDTH:
            text.append(f"{line}  # {why}")
        else:
            text += [*_comment(why, indent), line]
    return text


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(
        _plain(text),
        _WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plain(text: str) -> str:
    """A text without characters that would end a comment, such as those in a file name."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _scalar(value: Any) -> str:
    """A value as YAML in one line."""
    return dump(value, in_a_line=True).removesuffix("\n...\n").removesuffix("\n")
