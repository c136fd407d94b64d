"""Run by torchrun, one copy a rank: several `distill` commands, one after the other, each with a
process group of its own.

    torchrun --nproc-per-node 2 driver.py FOLDER

FOLDER/commands.json lists {"name", "arguments", "port", "stop_rank", "stop_step"}, or with "call"
in place of arguments a function "module:name" beside this file, which is called with its rank and
returns what JSON can hold. Each rank writes what a command came to into FOLDER/NAME.RANK.json:
{"code", "shown", "returned"}, where `shown` is what it printed on either stream.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny import stop_after

from distill.__main__ import main


def execute(arguments: list[str]) -> tuple[int, str]:
    """`distill` with these arguments, in this process: its exit code, and all it printed."""
    shown = io.StringIO()
    code: Any = 1
    with (
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
        mock.patch("sys.argv", ["distill", *arguments]),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
    return int(code or 0), shown.getvalue()


def run_all(folder: Path) -> None:
    """Every command of the list."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    # A store that outlives a group gives the next one the addresses of the last: each group gets a
    # store of its own.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    for command in json.loads((folder / "commands.json").read_text()):
        os.environ["MASTER_PORT"] = str(command["port"])
        with pytest.MonkeyPatch.context() as monkeypatch:
            if command["stop_rank"] == rank:
                stop_after(command["stop_step"], monkeypatch)
            result: dict[str, Any] = {"code": 0, "shown": "", "returned": None}
            if "call" in command:
                module, _, name = command["call"].partition(":")
                result["returned"] = getattr(importlib.import_module(module), name)(rank)
            else:
                result["code"], result["shown"] = execute(command["arguments"])
        (folder / f"{command['name']}.{rank}.json").write_text(json.dumps(result))
        if "Traceback (most recent call last)" in result["shown"]:
            # A crash ends the launch at once: the other process would wait long for this one.
            raise SystemExit(
                f"{command['name']} crashed on rank {rank}:\n{result['shown'][-4000:]}"
            )


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
