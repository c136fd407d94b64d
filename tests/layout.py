"""The layout of the package: its layers, who imports whom, and the figure of docs/architecture.md.

    python tests/layout.py    # writes the figure into docs/architecture.md; `make docs` calls it

A place is a file or package directly under distill/.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "distill"
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- figure: make docs -->", "<!-- end of figure -->"

# A new place is entered here first: its layer is a decision, not a finding.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "processes", "rng"}),
    frozenset({"console", "files", "recipe"}),
    frozenset({"checkpoint", "data", "losses"}),
    frozenset({"engine", "models"}),
    frozenset({"datatools", "evaluation"}),
    frozenset({"student"}),
    frozenset({"training"}),
    frozenset({"cli", "doctor", "init", "release"}),
    frozenset({"study"}),
    frozenset({"report"}),
    frozenset({"__main__"}),
)
# The same within training/.
TRAINING: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "clock",
            "energy",
            "hints",
            "masked",
            "inputs",
            "live_losses",
            "metrics",
            "opened",
            "output_folder",
            "result_file",
            "screen",
            "share",
            "stored_targets",
            "units",
        }
    ),
    frozenset({"hub_resume", "rundir", "settings", "sources", "unplaced"}),
    frozenset({"plan"}),
    frozenset(
        {
            "banks",
            "header",
            "hub_owner",
            "known_data",
            "logging",
            "streams",
            "targets",
            "teachers",
            "trunk",
        }
    ),
    frozenset({"build", "evaluations", "publishing", "summary"}),
    frozenset({"prepare_targets", "run_state", "verify_targets"}),
    frozenset({"check", "loop", "write_targets"}),
    frozenset({"interface"}),
)

FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(place: str, layers: Sequence[frozenset[str]]) -> int | None:
    return next((level for level, places in enumerate(layers) if place in places), None)


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Yields the dotted names under distill that a source imports, wherever the import stands.

    Of `from a import b` it yields "a.b", since b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("distill."))


def imports_of(path: Path) -> list[str]:
    package = ".".join(("distill", *path.relative_to(PACKAGE).parent.parts))
    return list(imported_modules(path.read_text(), package))


def arrows() -> dict[str, set[str]]:
    """Returns for each place the other places that it imports."""
    found: dict[str, set[str]] = {place: set() for layer in LAYERS for place in layer}
    for path in FILES:
        place = place_of(path)
        targets = {module.split(".")[1] for module in imports_of(path)}
        found.setdefault(place, set()).update(
            target for target in targets if target != place and not target.startswith("__")
        )
    del found["__init__"]
    return found


def reachable(place: str, graph: Mapping[str, set[str]]) -> set[str]:
    return graph[place].union(*(reachable(target, graph) for target in graph[place]))


def figure() -> str:
    """Returns the import graph in Mermaid, and a table of all imports.

    The graph leaves out an arrow from A to C where A imports B and B imports C.
    """
    graph = arrows()
    lines = ["```mermaid", "flowchart TD"]
    for level, layer in reversed(list(enumerate(LAYERS))):
        lines.append(f'  subgraph L{level}["layer {level}"]')
        lines += [f"    {place.strip('_')}[{place}]" for place in sorted(layer)]
        lines.append("  end")
    for place in sorted(graph):
        direct = graph[place]
        shown = direct - set().union(*(reachable(target, graph) for target in direct))
        lines += [f"  {place.strip('_')} --> {target}" for target in sorted(shown)]
    lines += ["```", "", "| place | imports |", "|---|---|"]
    lines += [f"| `{place}` | {', '.join(sorted(graph[place]))} |" for place in sorted(graph)]
    return "\n".join(lines)


def with_figure(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{figure()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_figure(PAGE.read_text()))
