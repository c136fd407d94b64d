"""A batch that does not fit: in a process whose memory is bounded, for real."""

import subprocess
import sys
from pathlib import Path

import pytest
from imagenet_sets import build, export_model

# The models and libraries are in memory before the bound is set, and little is free above it.
CODE = """
import resource, sys
from pathlib import Path
from distill.errors import InputError
from distill.release import passes
from distill.release.evaluate import evaluate_models

folder, batch_size = Path(sys.argv[1]), sys.argv[2]
plain = passes.Evaluator.answers

def bounded(self, *arguments):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), -1))
    return plain(self, *arguments)

passes.Evaluator.answers = bounded

trials, passing = iter(range(100)), int(sys.argv[3])
honest = passes.largest_that_fits
# The first trials let everything pass.
passes.largest_that_fits = lambda forward, first: (
    first if next(trials) < passing else honest(forward, first)
)
try:
    found = evaluate_models(
        folder / "model", sets="val", root=folder / "sets", num_workers=0, image_size=512,
        batch_size=None if batch_size == "auto" else int(batch_size),
    )
    print("images", found["model"].num_samples)
except InputError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    export_model(folder / "model")
    build(folder / "sets", folder / "model")
    return folder


def run(folder: Path, batch_size: str, passing_trials: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), batch_size, str(passing_trials)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_what_does_not_fit_says_what_does(folder: Path) -> None:
    out = run(folder, "60")
    assert "refused: --batch-size 60: does not fit into the memory of cpu; --batch-size " in out
    fits = int(out.split("; --batch-size ")[1].split()[0])
    assert 1 <= fits < 60
    assert "images 60" in run(folder, str(fits))


def test_auto_finds_one(folder: Path) -> None:
    assert "images 60" in run(folder, "auto")


def test_auto_takes_less_when_the_trial_fitted_and_the_pass_does_not(folder: Path) -> None:
    assert "images 60" in run(folder, "auto", passing_trials=1)
