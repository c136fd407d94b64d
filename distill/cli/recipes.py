"""distill recipe show | check | list | keys."""

import json
import os
import re
import sys
import textwrap
from itertools import takewhile
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from distill.cli.hints import complete_key, complete_recipe
from distill.console import make_console, show_table
from distill.errors import InputError
from distill.recipe import (
    Recipe,
    dump_recipe,
    load_recipe,
    read_recipe,
    recipes_dir,
    shipped_files,
    shipped_recipes,
)

_WIDE = 150  # columns of the list of recipes

recipe_app = typer.Typer(help="Look at recipes without running them.")

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, a run's folder, or the name of a shipped recipe.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help=(
            "Overrides by dotted key, the value as YAML: train.budget='2 epochs'. 'distill recipe"
            " keys' lists the keys."
        ),
        autocompletion=complete_key,
    ),
]


def loaded_with_notes(recipe: str, overrides: list[str] | None) -> Recipe:
    """A recipe to run; the first process says what was decided on the way."""
    loaded, notes = read_recipe(recipe, overrides or [])
    if os.environ.get("RANK", "0") == "0":
        _show_notes(make_console(), notes)
    return loaded


def _show_notes(console: Console, notes: list[str]) -> None:
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


@recipe_app.command("show")
def show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print a recipe resolved: all it extends, every default and override.

    What it prints is a recipe again.

    Example:
      distill recipe show quickstart/students train.budget='1 epoch'
    """
    loaded, notes = read_recipe(recipe, overrides or [])
    text = dump_recipe(loaded)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # in YAML's own escapes it is the same recipe still
        text = dump_recipe(loaded, ascii_only=True)
    for note in notes:
        print(f"# {note}")
    print(text, end="")


@recipe_app.command("check")
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Also check that the batch divides on so many processes."),
    ] = None,
) -> None:
    """Check all that can be known of a recipe here, without a GPU or a download.

    Files that are not here are noted; they are no fault of the recipe.

    Example:
      distill recipe check imagenet1k/res50_beitv2b_a1_600ep --processes 8
    """
    from distill.training.check import check_recipe

    loaded, notes = read_recipe(recipe, overrides or [])
    console = make_console()
    checked = check_recipe(loaded, processes)
    _show_notes(console, [*notes, *checked.not_here, *checked.not_compared])
    for line in checked.seen:
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"{recipe}: sound ({', '.join(loaded.students)}; {loaded.budgets})",
        markup=False,
        soft_wrap=True,
    )


@recipe_app.command("list")
def list_recipes() -> None:
    """List the recipes that come with the package, and what they extend.

    Each recipe is a RECIPE for train, show and check; strategies and parts
    stand behind `extends:` in a recipe of your own.

    Example:
      distill recipe list
    """
    console = make_console()
    for number, (heading, rows) in enumerate(_groups().items()):
        console.print(f"{'' if number == 0 else chr(10)}{heading}", markup=False, soft_wrap=True)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for name, description in rows:
            if console.width < _WIDE:  # two columns would leave the second too narrow
                console.print(Text(f"  {name}"), Padding(Text(description), (0, 0, 0, 6)), sep="\n")
            table.add_row(Text(f"  {name}"), Text(description))
        if console.width >= _WIDE:
            show_table(console, table)


_HEADINGS = {
    "quickstart": "Start here",
    "miniature": "Miniatures: a whole method in minutes",
    "imagenet1k": "Rows of the paper's tables",
    "imagenet21k": "Rows of the paper's tables",
    "cifar100": "Rows of the paper's tables",
    "fcmae": "Rows of the paper's tables",
    "finetune": "Teachers to fine-tune",
    "strategies": "To extend: strategies",
    "parts": "To extend: parts",
}


def _groups() -> dict[str, list[tuple[str, str]]]:
    """Heading -> names and descriptions; rows of the paper by table, a run's teacher before what it
    teaches.
    """
    complete = shipped_recipes()
    found: dict[str, list[tuple[int, bool, str, str]]] = {
        heading: [] for heading in _HEADINGS.values()
    }
    for name in shipped_files():
        opening = _opening(name)
        table = re.match(r"Table (\d+)\w*", opening) if name in complete else None
        description = (
            load_recipe(recipes_dir() / f"{name}.yaml").description
            if name in complete
            else _first(opening)
        )
        row = (
            int(table[1]) if table else 1000,
            "teacher" not in name,
            name,
            f"{table[0]}: {description}" if table else description,
        )
        found.setdefault(_HEADINGS[name.partition("/")[0]], []).append(row)
    return {
        heading: [(name, text) for _, _, name, text in sorted(rows)]
        for heading, rows in found.items()
    }


def _first(comment: str) -> str:
    """What a strategy or part says of itself: its first sentence, less the word for what it is."""
    return comment.removeprefix("Fragment: ").partition(". ")[0].rstrip(".")


def _opening(name: str) -> str:
    """The paragraph that a shipped file opens with, in its comment."""
    lines = (recipes_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    paragraph = takewhile(lambda line: line.startswith("# "), lines)
    return " ".join(line.removeprefix("# ") for line in paragraph)


@recipe_app.command("keys")
def keys(
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="PREFIX",
            help="Only this key and those below it, such as student.optimizer.",
            autocompletion=complete_key,
        ),
    ] = "",
    json_schema: Annotated[
        bool,
        typer.Option("--json-schema", help="Print a JSON schema of recipe files, for editors."),
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/recipes.md.")] = False,
) -> None:
    """List every key of a recipe: type, default, meaning.

    `student` holds what all students share; students.NAME takes the same keys.

    Examples:
      distill recipe keys student.optimizer
      distill recipe keys --json-schema > recipe.schema.json
    With "# yaml-language-server: $schema=recipe.schema.json" as first line of
    a recipe, editors complete its keys.
    """
    from distill.recipe.keys import markdown as page
    from distill.recipe.keys import parts_below

    if (json_schema or markdown) and prefix:
        raise InputError("--json-schema and --markdown are of all keys: leave PREFIX out")
    if json_schema:
        from distill.recipe.json_schema import json_schema as schema

        print(json.dumps(schema(), indent=2))
        return
    if markdown:
        print(page(), end="")
        return
    console = make_console()
    for number, part in enumerate(parts_below(prefix)):
        console.print(Text(f"{'' if number == 0 else chr(10)}{part.title}", style="bold"))
        for key in part.keys:
            console.print(
                Text(f"  {key.path}"),
                Text(f"  {key.type}; default: {key.default}", style="dim"),
                sep="",
            )
            lines = textwrap.wrap(key.meaning, console.width - 4, break_on_hyphens=False)
            console.print(Text("\n".join(f"    {line}" for line in lines)), soft_wrap=True)
