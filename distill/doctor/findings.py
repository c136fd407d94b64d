"""The result of an examination: facts, and findings with their fixes."""

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "unknown", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One result. `problem`: certain to fail. `warning`: may fail, or wastes much. `unknown`:
    cannot be known here. `fix`: what to change.
    """

    level: Level
    about: str
    says: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        return dict(vars(self))


@dataclass
class Section:
    """A section of the report: its title, rows of (name, value, source of the value), and
    tables."""

    title: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    tables: list["Grid"] = field(default_factory=list)

    def add(self, what: str, value: str, source: str = "") -> None:
        self.rows.append((what, value, source))


@dataclass(frozen=True)
class Grid:
    """A table: the first column is text, the others are numbers. `note` is printed below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass
class Diagnosis:
    """All results: `sections` for people, `numbers` for programs, `findings` for both."""

    sections: list[Section] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def find(self, level: Level, about: str, says: str, fix: str = "") -> None:
        if not any(each.says == says for each in self.findings):
            self.findings.append(Finding(level, about, says, fix))

    @property
    def exit_code(self) -> int:
        """2 if something is certain to fail, else 0."""
        return 2 if any(finding.level == "problem" for finding in self.findings) else 0
