"""The folder of a run: one process writes in it, and its newest checkpoint is found."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from distill.checkpoint.layout import checkpoints_dir
from distill.checkpoint.lock import FolderLock, refuse_locked
from distill.checkpoint.store import load_newest
from distill.errors import InputError
from distill.recipe import dump_recipe, load_recipe
from distill.training.rundir import open_run_folder

HOLDER = """
import sys, time
from pathlib import Path
from distill.checkpoint.lock import FolderLock
run_lock = FolderLock()
run_lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(
            InputError, match=rf"process {holder.pid} on .* is writing here.*output="
        ):
            FolderLock().acquire(tmp_path)
        with pytest.raises(InputError, match=f"process {holder.pid} on .* is writing here"):
            refuse_locked(tmp_path)
    finally:
        holder.kill()  # as kill -9: the lock must not outlive the process
        holder.wait()
    refuse_locked(tmp_path)
    FolderLock().acquire(tmp_path)


def test_a_second_run_is_refused_before_it_reads_data_and_models(tmp_path: Path) -> None:
    recipe, output = tiny.write_recipe(tmp_path), tmp_path / "run"
    output.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(InputError, match=f"{output}: process {holder.pid} on .* is writing"):
            tiny.run(recipe, "data.train.path=nowhere", "student.model=no_such_model")
    finally:
        holder.kill()
        holder.wait()


def test_forked_workers_do_not_keep_the_lock(tmp_path: Path) -> None:
    run_lock = FolderLock()
    run_lock.acquire(tmp_path)
    worker = multiprocessing.get_context("fork").Process(target=_wait)
    worker.start()
    try:
        run_lock.release()
        taken = subprocess.run(
            [sys.executable, "-c", HOLDER.replace("time.sleep(60)", ""), str(tmp_path)], check=False
        )
        assert taken.returncode == 0
    finally:
        worker.kill()
        worker.join()


def _wait() -> None:
    import time

    time.sleep(60)


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    for name in ("step-99999999", "step-100000000", "step-junk"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="step-100000000"):
        load_newest(checkpoints_dir(tmp_path))


@pytest.mark.parametrize("old", ['{"steps": 8}', '{"steps": 4', "[]", "[" * 100_000])
def test_a_run_that_starts_at_step_0_deletes_an_old_report(old: str, tmp_path: Path) -> None:
    recipe = load_recipe(tiny.write_recipe(tmp_path))
    output = Path(recipe.output_dir)
    output.mkdir()
    (output / "report.json").write_text(old)
    (output / "metrics.jsonl").write_text("")
    (output / "recipe.yaml").write_text(dump_recipe(recipe))
    lock = FolderLock()
    assert open_run_folder(output, recipe, lock, print, {}) is None
    lock.release()
    assert not (output / "report.json").exists()


def test_a_run_that_trains_its_last_steps_again_deletes_their_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.write_recipe(tmp_path)
    tiny.stop_after(4, monkeypatch)
    assert tiny.run(recipe) == 75
    report = tmp_path / "run" / "report.json"
    report.write_text(json.dumps({"steps": 8}))
    tiny.stop_after(2, monkeypatch)
    assert tiny.run(recipe) == 75
    assert not report.exists()
    monkeypatch.undo()
    assert tiny.run(recipe) == 0
    written = report.read_bytes()
    assert tiny.run(recipe) == 0
    assert report.read_bytes() == written
