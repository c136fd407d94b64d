"""Every example of the README and of docs/ works: recipes are sound, commands and options exist,
launches find their files, links resolve.
"""

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import (
    PAGES,
    ROOT,
    Command,
    Example,
    anchors,
    blocks,
    commands,
    inline_commands,
    links,
    name_of,
)

from distill.__main__ import build_command
from distill.recipe import read_recipe
from distill.study.stored import plan_study
from distill.training.check import check_recipe

# Commands of a shell or of other programs: nothing of ours to check.
FOREIGN = {
    *("cd", "source", "export", "sudo", "kubectl", "python3", ".venv/bin/pre-commit", "bash"),
    "hf",  # of huggingface_hub
}
ALL_COMMANDS = [*commands(), *inline_commands()]


def programs(name: str) -> list[Command]:
    return [command for command in ALL_COMMANDS if command.words[0] == name]


def is_placeholder(recipe: str) -> bool:
    """RECIPE, or a recipe of the reader's."""
    return recipe.isupper() or (recipe.endswith(".yaml") and not (ROOT / recipe).exists())


def distill_arguments(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns what a command gives to `distill`, directly or through a launcher; None without."""
    if words[0] == "distill":
        return words[1:]
    if "distill" in words and words[words.index("distill") - 1] == "-m":
        return words[words.index("distill") + 1 :]
    if words[:2] == ("docker", "run") and "--entrypoint" not in words:
        return words[words.index("vanillakd") + 1 :] or None
    return None


def find_command(arguments: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Returns the command that arguments name, and the arguments behind its name."""
    command: Any = build_command()
    rest = list(arguments)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {rest[0]}"
        command = command.commands[rest.pop(0)]
    return command, rest


OURS = [
    pytest.param(command, distill_arguments(command.words), id=str(command))
    for command in ALL_COMMANDS
    if distill_arguments(command.words)
]


@pytest.mark.parametrize(("command", "arguments"), OURS)
def test_options_exist(command: Command, arguments: tuple[str, ...]) -> None:
    found, rest = find_command(arguments)
    known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
    known |= {"--install-completion", "--show-completion"} if found.name == "distill" else set()
    if found.name == "launch":  # the options are those of torchrun
        if rest:
            torchrun_arguments(tuple(rest))
        return
    given = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    assert given <= known


@pytest.mark.parametrize("command", [c for c in commands() if distill_arguments(c.words)], ids=str)
def test_commands_of_a_block_parse(command: Command) -> None:
    found, rest = find_command(distill_arguments(command.words) or ())
    if hasattr(found, "commands"):
        return
    context = found.make_context(found.name, rest)
    recipe = context.params.get("recipe")
    if recipe is None or is_placeholder(recipe) or (ROOT / recipe).exists():
        return
    read_recipe(recipe, context.params.get("overrides") or [])


def processes_of(words: tuple[str, ...]) -> int | None:
    """Returns the number of processes that a launch starts; None if it does not say."""
    given = dict(pairwise(words))
    if "--num_processes" in given:
        return int(given["--num_processes"])
    if "--config_file" in given:
        return int(yaml.safe_load((ROOT / given["--config_file"]).read_text())["num_processes"])
    if "--nproc-per-node" in given:
        return int(given["--nproc-per-node"])
    gpus = [int(word.split("=")[1]) for word in words if word.startswith("--gpus-per-node=")]
    return int(given.get("-N", 1)) * gpus[0] if gpus else None


def accelerate_arguments(words: tuple[str, ...]) -> Any:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser().parse_args(list(words))


def torchrun_arguments(words: tuple[str, ...]) -> Any:
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(list(words))


LAUNCHES = [
    command
    for command in ALL_COMMANDS
    if command.words[0] in ("accelerate", "torchrun", "sbatch")
    and ("-m" in command.words or "launchers/slurm/train.sbatch" in command.words)
]


@pytest.mark.parametrize("command", LAUNCHES, ids=str)
def test_a_launch_parses_and_finds_its_files(command: Command) -> None:
    words = command.words
    if words[0] == "accelerate":
        arguments = accelerate_arguments(words[2:])
        assert arguments.config_file is None or (ROOT / arguments.config_file).is_file()
    elif words[0] == "torchrun":
        torchrun_arguments(words[1:])
    scripts = [word for word in words if word.startswith("launchers/")]
    assert all((ROOT / script).is_file() for script in scripts)
    assert words[0] != "sbatch" or not scripts or scripts[0].endswith(".sbatch")


def trained(words: tuple[str, ...]) -> list[str] | None:
    """Returns the recipe and overrides of a launched training; None for a reader's own recipe."""
    arguments = distill_arguments(words)
    if words[0] == "sbatch":
        arguments = ("train", *words[words.index("launchers/slurm/train.sbatch") + 1 :])
    if not arguments or arguments[0] != "train" or is_placeholder(arguments[1]):
        return None
    return list(arguments[1:])


TRAININGS = [
    command for command in LAUNCHES if processes_of(command.words) and trained(command.words)
]


@pytest.mark.parametrize("command", TRAININGS, ids=str)
def test_a_launched_recipe_fits_its_processes(command: Command) -> None:
    recipe, *overrides = trained(command.words) or []
    loaded, _ = read_recipe(recipe, overrides)
    check_recipe(loaded, processes_of(command.words))


def test_launches_are_among_the_examples() -> None:
    assert {command.words[0] for command in LAUNCHES} == {"accelerate", "torchrun", "sbatch"}
    assert len(TRAININGS) >= 4


@pytest.mark.parametrize("command", programs("make"), ids=str)
def test_targets_of_make_exist(command: Command) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in command.words[1:] if "=" not in word} <= targets


@pytest.mark.parametrize("command", programs("pip"), ids=str)
def test_extras_exist(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"\[(.*)\]", " ".join(command.words))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("command", programs("python"), ids=str)
def test_modules_exist(command: Command) -> None:
    assert command.words[1] == "-m"
    module = command.words[2]
    if module.startswith("benchmarks."):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    else:
        assert module in {"distill", "http.server"}


def test_no_command_is_left_out() -> None:
    checked = {"distill", "accelerate", "torchrun", "sbatch", "make", "pip", "python", "docker"}
    others = {command.words[0] for command in commands()} - checked - FOREIGN
    assert all((ROOT / other).exists() or other.startswith(".venv/bin/") for other in others)


@pytest.mark.parametrize("example", blocks("yaml"), ids=str)
def test_a_recipe_is_sound(example: Example, tmp_path: Path) -> None:
    (tmp_path / "parts").symlink_to(ROOT / "recipes/parts")  # as beside a shipped recipe
    path = tmp_path / "mine/recipe.yaml"
    path.parent.mkdir()
    path.write_text(example.text)
    loaded, _ = read_recipe(str(path), [])
    check_recipe(loaded, None)


@pytest.mark.parametrize("example", blocks("yaml fragment"), ids=str)
def test_a_fragment_completes_a_recipe(example: Example, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"extends: imagenet1k/res50_beitv2b_a2_300ep\n{example.text}")
    read_recipe(str(path), [])


@pytest.mark.parametrize("example", blocks("yaml study"), ids=str)
def test_a_study_is_sound(example: Example, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(example.text)
    plan = plan_study(str(path), [f"output={tmp_path / 'out'}"])
    for run in plan.runs:
        check_recipe(plan.recipe(run))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.split("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert set((ROOT / "docs").glob("*.md")) <= linked


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def test_tests_that_ci_names_exist() -> None:
    named = re.findall(r"tests/[\w/]+(?:\.py)?", (ROOT / ".ci/lowest").read_text())
    assert named
    assert all((ROOT / path).exists() for path in named)
