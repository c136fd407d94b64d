"""Runs what is not done of a study: one job, all jobs one after the other, or a SLURM array."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill.checkpoint.lock import refuse_locked
from distill.cli.faults import explain_error
from distill.console import error_panel
from distill.errors import InputError
from distill.init.launchers import launchers_dir
from distill.processes import several_processes
from distill.study.fleets import Run
from distill.study.stored import StudyPlan

# Exit codes of `distill train`, which training.loop has too, with torch.
DONE, FAILED, ALL_STOPPED, INTERRUPTED = 0, 1, 3, 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def left_jobs(plan: StudyPlan) -> list[int]:
    """Returns the indices of the jobs that have a run which has not ended."""
    return [
        index
        for index, job in enumerate(plan.jobs)
        if any(plan.state(run) != "done" for run in job)
    ]


def refuse_busy(plan: StudyPlan, *, trains: bool) -> None:
    """Raises InputError if another process works on the study, and if this one `trains`, also if
    another trains one of its runs, such as a task of an array.
    """
    refuse_locked(plan.folder)
    for index in left_jobs(plan) if trains else ():
        for run in plan.jobs[index]:
            refuse_locked(plan.output(run))


def run_job(plan: StudyPlan, index: int) -> int:
    """Trains the runs of a job in this process, or in all processes of a launch. Runs that have
    ended are left out, and one that fails does not end the others. Collective: every rank.

    Args:
        index: of the job, from 0, as --list shows it and as a SLURM array numbers its tasks.

    Returns:
        The exit code of the first run that failed, 75 after a signal, else 0, or 3 if every student
        of a run stopped because its loss was not finite.

    Raises:
        InputError: there is no such job.
    """
    from distill.training.loop import train

    jobs = plan.jobs
    if index >= len(jobs):
        raise InputError(
            f"--run {index}: the study has {len(jobs)} jobs, numbered from 0; distill study"
            f" {plan.folder} --list shows them"
        )
    codes = []
    for run in jobs[index]:
        if plan.state(run) == "done":
            continue
        trunk = None if run.trunk is None else plan.folder / run.trunk
        try:
            codes.append(train(plan.recipe(run), trunk=trunk))
        except Exception as error:
            if several_processes():  # the other ranks wait for this one: the launcher ends them
                raise
            codes.append(_explained(error))
        if codes[-1] == INTERRUPTED:
            return INTERRUPTED
    return next((code for code in codes if code not in (DONE, ALL_STOPPED)), max(codes, default=0))


def _explained(error: Exception) -> int:
    """Prints why a run failed; returns its exit code."""
    shown = None if os.environ.get("DISTILL_TRACEBACK") else explain_error(error)
    if shown is None:
        traceback.print_exc()
        return FAILED
    error_panel(shown[0])
    return shown[1]


@dataclass(frozen=True)
class Outcome:
    """How the jobs of a study ended.

    Attributes:
        failed: the runs that have not ended although their job did, with its exit code.
        all_stopped: a run whose students all stopped because their losses were not finite.
        interrupted: a signal ended the work; the same command resumes it.
    """

    failed: Sequence[tuple[Run, int]]
    all_stopped: bool
    interrupted: bool

    @property
    def code(self) -> int:
        """The exit code of the study."""
        if self.interrupted:
            return INTERRUPTED
        if self.failed:
            return FAILED
        return ALL_STOPPED if self.all_stopped else DONE


def run_all(plan: StudyPlan, num_processes: int | None, say: Callable[[str], None]) -> Outcome:
    """Runs the jobs that are not done one after the other, each in a process of its own, or in
    several: one that fails, whatever happens to its process, does not end the others. A single job
    runs in this process, where torch and timm are imported already, if it needs no launcher.

    Args:
        num_processes: for each job, started by `distill launch`; None: one, without it.
        say: prints a line of progress.
    """
    launch = [] if num_processes is None else ["launch", "--nproc-per-node", str(num_processes)]
    failed: list[tuple[Run, int]] = []
    all_stopped = False
    left = left_jobs(plan)
    if len(left) == 1 and num_processes is None:
        job = plan.jobs[left[0]]
        say(f"study {plan.spec.name}: job 1 of 1: {_described(job)}")
        code = run_job(plan, left[0])
        undone = [(run, code) for run in job if plan.state(run) != "done"]
        return Outcome(undone, code == ALL_STOPPED, interrupted=code == INTERRUPTED)
    with _forwarding() as child:
        for place, index in enumerate(left, 1):
            job = plan.jobs[index]
            say(f"study {plan.spec.name}: job {place} of {len(left)}: {_described(job)}")
            command = [sys.executable, "-m", "distill", *launch, "study", str(plan.folder)]
            code = child.run([*command, "--run", str(index)])
            if code == INTERRUPTED or child.received:
                return Outcome(failed, all_stopped, interrupted=True)
            all_stopped = all_stopped or code == ALL_STOPPED
            failed += [(run, code) for run in job if plan.state(run) != "done"]
    return Outcome(failed, all_stopped, interrupted=False)


def _described(job: Sequence[Run]) -> str:
    return ", then ".join(f"{run.name} ({', '.join(run.cells)})" for run in job)


class _Child:
    """The process of a job. A signal to the study is passed on, once: the job saves and ends."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> int:
        # A session of its own: a Ctrl-C at the terminal would reach it twice, which means "now".
        self._process = subprocess.Popen(command, start_new_session=True)
        if self.received is not None:  # just before
            self._process.send_signal(self.received)
        code = self._process.wait()
        self._process = None
        return code

    def forward(self, number: int, _frame: object) -> None:
        self.received = number
        if self._process is not None:
            self._process.send_signal(number)


@contextmanager
def _forwarding() -> Iterator[_Child]:
    child = _Child()
    # A SIGINT that is ignored stays ignored: the shell started this in the background.
    watched = [each for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, child.forward) for number in watched}
    try:
        yield child
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def slurm_command(plan: StudyPlan, options: str) -> list[str]:
    """Returns the command that submits the jobs which are not done as a SLURM array.

    Args:
        options: of sbatch, as in a shell: "-p gpu --gpus-per-node=8 -t 12:00:00".

    Raises:
        InputError: the options are no words of a shell, or nothing is left to do.
    """
    left = left_jobs(plan)
    if not left:
        raise InputError(f"{plan.folder}: every run of this study has ended")
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--slurm {options!r}: {error}: quote it as in a shell") from error
    script = launchers_dir() / "slurm" / "study.sbatch"
    array = ",".join(map(str, left))
    return ["sbatch", f"--array={array}", *words, str(script), str(plan.folder.absolute())]


def submit(command: Sequence[str], folder: Path) -> int:
    """Submits a SLURM array; returns the exit code of sbatch.

    Args:
        folder: of the study.

    Raises:
        InputError: there is no sbatch here.
    """
    if shutil.which(command[0]) is None:
        raise InputError(
            f"sbatch is not here; the plan is in {folder}. On the machine that submits jobs:\n"
            f"  {shlex.join(command)}"
        )
    return subprocess.run(command, check=False).returncode
