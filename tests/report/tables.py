"""The texts of an HTML page, as a reader sees them."""

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.order: list[tuple[str, int]] = []
        self.facts: list[list[str]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag in ("h2", "h3", "h4", "summary"):
            self.order.append(("heading", len(self.headings)))
            self.headings.append("")
        elif tag == "table":
            self.order.append(("table", len(self.tables)))
            self.tables.append((" ".join(self.headings[-1].split()), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag == "dt":
            self.facts.append(["", ""])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.words.append(data)
        if {"h2", "h3", "h4", "summary"} & set(self._open):
            self.headings[-1] += data
        for index, tag in enumerate(("dt", "dd")):
            if tag in self._open:
                self.facts[-1][index] += data
        if {"td", "th"} & set(self._open):
            # What is smaller stands below: "kd" and then the model and its objective.
            self.tables[-1][1][-1][-1] += f"\n{data}" if "small" in self._open else data


class Page:
    """A page that was written.

    Attributes:
        html: its source.
        tags: each with its attributes.
    """

    def __init__(self, file: Path) -> None:
        self.html = file.read_text(encoding="utf-8")
        reader = _Reader()
        reader.feed(self.html)
        reader.close()
        assert not reader._open, reader._open
        self.tags = reader.tags
        self.text = " ".join(" ".join(reader.words).split())
        self.headings = [" ".join(each.split()) for each in reader.headings]
        self._tables = [
            (" ".join(name.split()), [[cell.strip() for cell in row] for row in rows])
            for name, rows in reader.tables
        ]
        self._order = reader.order
        self._facts = {name.strip(): text.strip() for name, text in reader.facts}

    def table(self, heading: str) -> list[list[str]]:
        """The rows of the first table under a heading."""
        return next(rows for name, rows in self._tables if name == heading)

    def tables_of(self, summary: str) -> dict[str, list[list[str]]]:
        """The tables of the student whose summary starts so, by their headings."""
        student, found = "", {}
        for kind, text in self._order:
            if kind == "heading" and "images right" in self.headings[text]:
                student = self.headings[text]
            elif kind == "table" and student.startswith(summary):
                name, rows = self._tables[text]
                found[name] = rows
        return found

    def fact(self, name: str) -> str:
        """The text beside a word."""
        return self._facts[name]
