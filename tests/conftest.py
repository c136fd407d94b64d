"""What every test runs under: no network, one thread, a known environment, and a reason where a GPU
is missing.
"""

# isort: off
import environment  # noqa: F401 - before all that reads it

# isort: on

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import skips
import torch
from command import Cli, Outcome
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from fake_hub import FakeHub

# `tiny` and the command line are imported where they are used: they take seconds, and many tests
# need neither.


# Whole files that are slow: runs of several processes, clusters, kills, benchmarks, stages, real
# weights and little memory. Most of what they are about has faster tests too:
# test_launch_environment, test_launchers, test_teacher_placement, test_checkpoint_store,
# test_resume, test_stage_recipes, and the streams of tests/data.
SLOW_FILES = {
    "test_batch_size.py",
    "test_benchmark_streaming.py",
    "test_benchmarks.py",
    "test_crd_processes.py",
    "test_device_runs.py",
    "test_diverged.py",
    "test_doctor_masked.py",
    "test_faults.py",
    "test_fitnet.py",
    "test_gpu_check.py",
    "test_host_memory.py",
    "test_hub_resume.py",
    "test_hub_weights.py",
    "test_kill.py",
    "test_launch_command.py",
    "test_losses_dist_ranks.py",
    "test_masked_processes.py",
    "test_miniature.py",
    "test_moved_streams.py",
    "test_norms_of_processes.py",
    "test_publish_process.py",
    "test_real_weights.py",
    "test_repeated_epochs.py",
    "test_scaling_tables.py",
    "test_slurm.py",
    "test_slurm_study.py",
    "test_stages.py",
    "test_statistics_groups.py",
    "test_stored_features.py",
    "test_stream_ends.py",
    "test_stream_hub.py",
    "test_stream_identity.py",
    "test_stream_stops.py",
    "test_streams.py",
    "test_study_runs.py",
    "test_target_processes.py",
    "test_teacher_view.py",
    "test_teachers_of_hints.py",
    "test_two_processes.py",
    "test_verify_targets.py",
    "test_zero.py",
}

# The same examples in every run and on every machine, and no time limit for one: a loaded machine
# would miss it. An example may write to the test's own folder, which all examples of a test share.
settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # In the background of a script SIGINT is ignored, here and in every process that tests start,
    # but some tests are about Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI"):
        config.pluginmanager.register(skips)


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Restore the handlers: a failed process of several ignores SIGTERM until it has ended, and a
    test that runs such a command in this process would leave that to all later tests.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs `distill ...` in this process: cli("train", recipe, "seed=1"). Captures the output of
    workers too.
    """
    monkeypatch.delenv("DISTILL_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    from distill.__main__ import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["distill", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return Outcome(end.value.code, out, err)

    return call


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """A fake Hub that this process uses with alice's token and an empty cache. huggingface_hub does
    not wait between its attempts.
    """
    from fake_hub import FakeHub

    from distill.models.hub.download import pin_commits

    with FakeHub() as server:
        server.account("hf_alice_may_write", "alice", organizations=("lab",))
        server.account("hf_bob_may_write", "bob")
        pin_commits({})
        with server.connected(monkeypatch, cache=tmp_path / "hf", token="hf_alice_may_write"):
            server.hurry(monkeypatch)
            yield server
            # Before the settings of this Hub are taken back: undone later, what a test has changed
            # among them would be set to those of this Hub again, and stay.
            monkeypatch.undo()
        pin_commits({})


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Callable[..., Path]:
    """tiny_recipe({"train": {...}}, ...): a recipe that trains in two seconds, written below the
    test's folder.
    """
    import tiny

    return lambda *changes, name="run": tiny.write_recipe(tmp_path, *changes, name=name)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tests only read: three students of two models, with averages, behind a
    teacher.
    """
    import tiny

    folder = tmp_path_factory.mktemp("tiny_run")
    recipe = tiny.write_recipe(
        folder,
        {
            "train": {"budget": "6 iterations"},
            "evaluate": {"every": "3 iterations"},
            "checkpoint": {"every": "3 iterations"},
            "student": {"ema": {"decays": [0.5]}},
            "students": {
                "alone": {},
                "kd": {"objective": {"soft": {"loss": "kl", "temperature": 2.0}}},
                "vit": {
                    "model": "test_vit",
                    "model_args": {"patch_size": 4},
                    "optimizer": {"name": "adamw", "lr": 1e-3},
                },
            },
        },
    )
    assert tiny.run(recipe) == 0
    return folder / "run"
