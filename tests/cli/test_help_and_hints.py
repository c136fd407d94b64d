"""Help that fits 80 columns, options that are keys of the recipe, completion, output on a terminal
without the letters.
"""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Cli

from distill import __version__
from distill.__main__ import build_command, explain_error
from distill.cli.hints import complete_key, complete_recipe, hint
from distill.recipe import load_recipe, shipped_files
from distill.recipe.keys import each_key

ROOT = Path(__file__).resolve().parents[2]


def each_command(
    command: Any, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, each in getattr(command, "commands", {}).items():
        yield from each_command(each, (*words, name))


COMMANDS = dict(each_command(build_command()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_and_cuts_no_name(words: tuple[str, ...], cli: Cli) -> None:
    outcome = cli(*words, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: {' '.join(('distill', *words))}")
    for line in str(COMMANDS[words].help).splitlines():
        assert line.strip() in outcome.out, "the help as it was written"
    for parameter in COMMANDS[words].params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert not name.startswith("-") or name in outcome.out.replace(",", " ").split(), name
    for noise in ("<", "[x>=", "…", "╭", "{"):
        assert noise not in outcome.out.replace("<(", "").replace("train-{0000", ""), noise
    for name in getattr(COMMANDS[words], "commands", {}):
        assert any(line.startswith(f"  {name} ") for line in lines)


def test_alone_it_prints_help_and_is_no_error(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 0
    assert "Commands:" in outcome.out
    assert outcome.out.strip() == cli("--help").out.strip()


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"distill {__version__}\n"


def test_options_and_defaults_are_shown_as_typed(cli: Cli) -> None:
    out = cli("evaluate", "--help").out
    assert "  --precision fp32|bf16|fp16  The data type of computations. (default: fp32)\n" in out
    assert "  --image-size N " in out


def test_the_usage_in_an_error_has_no_braces(cli: Cli) -> None:
    outcome = cli("train")
    assert outcome.code == 2
    assert outcome.err.startswith("Usage: distill train RECIPE [KEY=VALUE]...\n")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (
            ["train", "my.yaml", "--lr", "1e-3"],
            "; write student.optimizer.lr=1e-3",
        ),
        (["train", "my.yaml", "--epochs=10"], "write train.budget='10 epochs'"),
        (["train", "--batch-size", "64", "my.yaml"], "write train.batch_size_global=64"),
        (
            ["recipe", "check", "my.yaml", "--clip-grad-norm", "1.0"],
            "write student.optimizer.clip_grad_norm=1.0",
        ),
        (
            ["recipe", "show", "my.yaml", "--weight-decay"],
            "write student.optimizer.weight_decay=0.05",
        ),
        (["doctor", "my.yaml", "--micro-batch-size", "32"], "write train.micro_batch_size=32"),
        (["train", "my.yaml", "--momentun", "0.9"], "did you mean 'momentum'"),
    ],
)
def test_an_unknown_option_names_the_key_it_means(typed: list[str], says: str, cli: Cli) -> None:
    outcome = cli(*typed)
    assert outcome.code == 2
    assert says in " ".join(outcome.err.replace("│", " ").split())
    assert "Possible options" not in outcome.err


def test_each_hint_is_an_override_that_loads() -> None:
    """A hint that leads to another error would be worse than none."""
    from distill.cli.hints import _OVERRIDES

    known = {key.path for key in each_key()}
    for option in _OVERRIDES:
        override = hint(f"--{option}", None).removeprefix("write ").replace("'", "")
        assert override.partition("=")[0] in known
        load_recipe("quickstart/students", ["student.objective.soft={loss: kl}", override])
    assert hint("--zzzzzz", None) == ""


def test_completion_offers_recipes_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").touch()
    (tmp_path / "quick.png").touch()
    assert list(complete_recipe("quick")) == [
        "quick.yaml",
        "quickstart/students",
        "quickstart/teacher",
    ]
    assert list(complete_key("student.optimizer.l")) == [
        "student.optimizer.lr=",
        "student.optimizer.lr_scaling.",
    ]
    assert "train." in set(complete_key("t"))
    monkeypatch.setenv("_DISTILL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "distill train quickstart/te")
    monkeypatch.setenv("COMP_CWORD", "2")
    written = io.StringIO()
    monkeypatch.setattr("sys.stdout", written)
    with pytest.raises(SystemExit):
        build_command()(prog_name="distill")
    assert written.getvalue().split() == ["quickstart/teacher"]


def test_keys_lists_prints_and_refuses(cli: Cli) -> None:
    out = cli("recipe", "keys", "student.optimizer.lr").out
    assert "student.optimizer.lr  number, above 0; default: 0.001" in out
    assert "    The largest learning rate, at the end of warm-up.\n" in out
    assert all(line == line.rstrip() for line in out.splitlines())
    assert cli("recipe", "keys", "--markdown").out == (ROOT / "docs/recipes.md").read_text()
    assert '"$schema"' in cli("recipe", "keys", "--json-schema").out
    outcome = cli("recipe", "keys", "optimiser")
    assert (outcome.code, "'optimizer'" in outcome.err) == (2, True)
    assert len(cli("recipe", "keys").out.splitlines()) > 2 * len({key.path for key in each_key()})


def test_every_shipped_file_is_under_a_heading(cli: Cli) -> None:
    assert len(
        [line for line in cli("recipe", "list").out.splitlines() if line.startswith("  ")]
    ) == len(shipped_files())


# ---- locales -------------------------------------------------------------------------------------


def test_a_recipe_in_utf8_under_an_ascii_locale_and_no_torch(tmp_path: Path) -> None:
    """Also what the quick commands cost: torch takes seconds to import, and none of
    them needs it.
    """
    text = "extends: quickstart/teacher\nname: Ämter\ndescription: Größe übrig λ\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    code = (
        "import sys\nfrom distill.__main__ import main\nfor words in (['recipe', 'show', 'a.yaml'],"
        " ['recipe', 'list'], ['recipe', 'keys', 'log'], ['--help']):\n    sys.argv = ['distill',"
        " *words]\n    try:\n        main()\n    except SystemExit as end:\n        assert not"
        " end.code, words\nassert 'torch' not in sys.modules\nassert 'timm' not in sys.modules\n"
    )
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout.partition("Start here")[0])
    assert (shown["name"], shown["description"]) == ("Ämter", "Größe übrig λ")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_recipe_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "extends: quickstart/teacher\ndescription: Größe\n", encoding=encoding
    )
    assert load_recipe(tmp_path / "a.yaml").description == "Größe"


def test_an_override_whose_bytes_an_ascii_locale_left_undecoded() -> None:
    word = "description=Größe".encode().decode("ascii", "surrogateescape")
    assert load_recipe("quickstart/teacher", [word]).description == "Größe"


def test_a_letter_that_a_locale_lacks_is_no_traceback() -> None:
    error = UnicodeEncodeError("ascii", "Größe", 2, 3, "ordinal not in range(128)")
    message, code = explain_error(error) or ("", 0)
    assert (code, "'\\xf6': this locale writes ASCII" in message, "PYTHONUTF8=1" in message) == (
        2,
        True,
        True,
    )


# ---- what is no recipe file ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\0b", "no recipe 'a\\x00b'"),
        ("x" * 5000, "no recipe 'xxx"),
        ("/dev/zero", "/dev/zero: is a pipe or a device"),
        ("fifo", "fifo: is a pipe or a device"),
        ("folder", "a folder without recipe.yaml"),
        ("extends_fifo.yaml", "fifo is not a plain file"),
        ("latin.yaml", "byte 13 is not UTF-8"),
        ("cycle.yaml", "extends itself through cycle.yaml -> other.yaml -> cycle.yaml"),
        ("large.yaml", "a recipe has at most"),
        ("chain0.yaml", "more than 20 levels deep"),
        ("~nobody-here/x", "no recipe '~nobody-here/x'"),
    ],
)
def test_what_is_no_recipe_never_blocks(
    name: str, says: str, tmp_path: Path, cli: Cli, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("folder").mkdir()
    Path("extends_fifo.yaml").write_text("extends: fifo\n")
    Path("latin.yaml").write_bytes("description: ä\n".encode("latin-1"))
    Path("cycle.yaml").write_text("extends: other.yaml\n")
    Path("other.yaml").write_text("extends: cycle.yaml\n")
    Path("large.yaml").write_text("# " + "x" * 3_000_000)
    for number in range(30):
        Path(f"chain{number}.yaml").write_text(f"extends: chain{number + 1}.yaml\n")
    outcome = cli("recipe", "show", name)
    assert outcome.code == 2
    assert says in outcome.err


def test_doubling_extends_are_read_once(tmp_path: Path) -> None:
    """2^15 files if each were read where it is named."""
    for number in range(15):
        (tmp_path / f"{number}.yaml").write_text(
            f"extends: [{number + 1}.yaml, {number + 1}.yaml]\n"
        )
    (tmp_path / "15.yaml").write_text("extends: quickstart/teacher\n")
    assert load_recipe(tmp_path / "0.yaml").name == "quickstart/teacher"
