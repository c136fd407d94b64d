"""Hints for options that a command does not have, such as --lr, which are mostly keys of a recipe;
and shell completion of recipes and keys.
"""

from collections.abc import Callable, Iterator
from typing import Any

from distill.errors import did_you_mean

# Unknown option -> the override to use, and an example of a value if none is given.
_OVERRIDES = {
    "epochs": ("train.budget='{} epochs'", "10"),
    "num_epochs": ("train.budget='{} epochs'", "10"),
    "iterations": ("train.budget='{} iterations'", "10000"),
    "max_steps": ("train.budget='{} iterations'", "10000"),
    "steps": ("train.budget='{} iterations'", "10000"),
    "batch_size": ("train.batch_size_global={}", "256"),
    "bs": ("train.batch_size_global={}", "256"),
    "lr": ("student.optimizer.lr={}", "1e-3"),
    "learning_rate": ("student.optimizer.lr={}", "1e-3"),
    "wd": ("student.optimizer.weight_decay={}", "0.05"),
    "weight_decay": ("student.optimizer.weight_decay={}", "0.05"),
    "opt": ("student.optimizer.name={}", "adamw"),
    "optimizer": ("student.optimizer.name={}", "adamw"),
    "warmup_epochs": ("student.schedule.warmup='{} epochs'", "5"),
    "warmup": ("student.schedule.warmup='{} epochs'", "5"),
    "temperature": ("student.objective.soft.temperature={}", "2"),
    "workers": ("data.num_workers={}", "4"),
    "img_size": ("data.image_size={}", "224"),
    "data": ("data.root={}", "FOLDER"),
    "data_dir": ("data.root={}", "FOLDER"),
    "output_dir": ("output={}", "runs/mine"),
    "out": ("output={}", "runs/mine"),
    "output": ("output={}", "runs/mine"),
    "model": ("student.model={}", "resnet50"),
    "student": ("student.model={}", "resnet50"),
    "teacher": ("teacher.model={}", "resnet50"),
    "amp": ("train.precision=bf16", ""),
    "bf16": ("train.precision=bf16", ""),
    "fp16": ("train.precision=fp16", ""),
}


def hint(option: str, following: str | None) -> str:
    """Returns what to write instead of an unknown option; empty if no key is similar.

    Args:
        option: the option as typed, "--lr" or "--lr=1e-3".
        following: the next word of the command line.
    """
    name, equals, value = option.lstrip("-").partition("=")
    name = name.replace("-", "_").lower()
    is_value = following is not None and not following.startswith("-") and "=" not in following
    given = value if equals else following if is_value else None
    if name in _OVERRIDES:
        pattern, example = _OVERRIDES[name]
        return f"write {pattern.format(given or example)}"
    from distill.recipe.keys import each_key, keys_named

    known = {key.path for key in each_key()} | {key.name for key in each_key()}
    paths = keys_named(name) or ([name] if name in known else [])
    if paths:
        which = "" if len(paths) == 1 else "one of "
        return f"write {which}{', '.join(path + '=' + (given or 'VALUE') for path in paths[:4])}"
    close = did_you_mean(name, known)
    return f"settings are written KEY=VALUE{close}: distill recipe keys lists them" if close else ""


def add_hints(command: Any) -> None:
    """Adds a hint to the error about an unknown option, for each command that accepts overrides."""
    for each in command.commands.values():
        if hasattr(each, "commands"):
            add_hints(each)
        elif any(parameter.name == "overrides" for parameter in each.params):
            each.parse_args = _hinting(each.parse_args)


def _hinting(parse_args: Callable[[Any, list[str]], Any]) -> Callable[[Any, list[str]], Any]:
    def parse(context: Any, words: list[str]) -> Any:
        typed = list(words)
        try:
            return parse_args(context, words)
        except Exception as error:
            # The class is in click or in typer's copy of it, depending on the version.
            if type(error).__name__ == "NoSuchOption" and hasattr(error, "option_name"):
                at = next(
                    (i for i, word in enumerate(typed) if word.startswith(error.option_name)),
                    len(typed),
                )
                typed_option, following, *_ = [*typed[at : at + 2], None, None]
                if text := hint(typed_option or error.option_name, following):
                    message = error.message.rstrip(".")  # type: ignore[attr-defined]
                    error.message = f"{message}; {text}"  # type: ignore[attr-defined]
                    error.possibilities = None  # type: ignore[attr-defined]
            raise

    return parse


# ---- completion ----------------------------------------------------------------------------------


def complete_recipe(incomplete: str) -> Iterator[str]:
    """Recipes of the package and local YAML files that start with `incomplete`."""
    from pathlib import Path

    from distill.recipe.load import shipped_recipes

    folder, _, _ = incomplete.rpartition("/")
    try:
        found = [
            path
            for path in Path(folder or ".").iterdir()
            if path.is_dir() or path.suffix in (".yaml", ".yml")
        ]
    except OSError:
        found = []
    local = [f"{folder}/{path.name}" if folder else path.name for path in found]
    yield from sorted(name for name in {*local, *shipped_recipes()} if name.startswith(incomplete))


def complete_key(incomplete: str) -> Iterator[str]:
    """Keys that start with `incomplete`, up to the next dot, so that a shell shows only a few."""
    from distill.recipe.keys import each_key

    depth = incomplete.count(".")
    paths = {
        key.path
        for key in each_key()
        if key.path != "extends" and not key.path.startswith("stages")
    }
    for path in sorted(
        path for path in paths if path.startswith(incomplete) and path.count(".") == depth
    ):
        below = any(other.startswith(f"{path}.") for other in paths)
        yield f"{path}." if below else f"{path}="
