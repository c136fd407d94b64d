"""The pages of the project, and the examples in them: fenced blocks, commands, links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launchers/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Its commands are those of the commits that were measured.
LOG = ROOT / "docs/log.md"
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BREAKS = {"&&", "||", ";", "&", "|"}


@dataclass(frozen=True)
class Example:
    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:70]}"


@dataclass(frozen=True)
class Command:
    """One command of a page, without the variables before it and the redirections behind it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)[:100]}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[Example]:
    """Returns the fenced blocks of a language; "yaml fragment" is not "yaml"."""
    return [
        Example(name_of(page), text)
        for page in PAGES
        for shown, text in _FENCE.findall(page.read_text())
        if shown == language
    ]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def shell_commands(text: str) -> Iterator[tuple[str, ...]]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _BREAKS:
                if words := without_redirections(words):
                    yield tuple(words)
                words = []
            else:
                words.append(word)


def without_redirections(words: list[str]) -> list[str]:
    """Drops variables before a command, and what follows the first redirection."""
    start = next((at for at, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), None)
    if start is None:
        return []
    end = next((at for at, word in enumerate(words) if re.fullmatch(r"[<>]+", word)), len(words))
    return words[start:end]


def commands() -> list[Command]:
    """Returns the commands of all shell blocks."""
    return [
        Command(example.page, words)
        for example in blocks("bash")
        for words in shell_commands(example.text)
    ]


def inline_commands() -> list[Command]:
    """Returns the `distill ...`, `accelerate launch ...`, `sbatch ...` and `make ...` in prose."""
    first_words = r"distill|accelerate launch|torchrun|sbatch|make|python -m"
    return [
        Command(name_of(page), words)
        for page in PAGES
        if page != LOG
        for span in re.findall(rf"`((?:[A-Z_]+=\S+ )*(?:{first_words}) [^`]+)`", prose(page))
        for words in shell_commands(" ".join(span.split()))
    ]


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
