"""A SLURM cluster on this machine: slurmctld and two slurmd for real, from Debian's slurm-wlm, with
nothing outside a folder.

One processor a node, so that a node takes one job at a time. No accounts, no cgroups, no MUNGE:
what is tested is what SLURM does to jobs, and that needs none of them.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ports import free_ports

NODES = ("node1", "node2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
TIMEOUT_S = 600
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

# cred_expire: how long a requeued job waits, 120 s by default. "urgent" preempts jobs of "patient",
# which get 60 s to end.
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=60
MailProg=/bin/true
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=node1,node2 Default=YES State=UP
PartitionName=patient Nodes=node1,node2 State=UP GraceTime=60
PartitionName=urgent Nodes=node1,node2 State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why SLURM cannot run here; None if it can be tried."""
    missing = [program for program in PROGRAMS if find(program) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm"
    if os.geteuid() != 0:
        return "slurmd starts only as root"
    return None


def find(program: str) -> str | None:
    """Daemons lie where an ordinary PATH does not look."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Job:
    """A job that was submitted: what SLURM says of it, and its log."""

    def __init__(self, cluster: "Cluster", name: str, log: Path) -> None:
        self.cluster, self.name, self._log = cluster, name, log

    def facts(self) -> dict[str, str]:
        """JobState, Restarts, ExitCode and so on."""
        line = self.cluster.call("scontrol", "show", "job", "-o", self.name).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    @property
    def state(self) -> str:
        return self.facts()["JobState"]

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def signal(self, *options: str) -> None:
        """scancel it, with options."""
        self.cluster.call("scancel", *options, self.name)

    def wait(self, timeout_s: float = TIMEOUT_S, *also: str) -> str:
        """Until it is in a state that it has ended in, or in one of `also`; that state."""
        self.cluster.until(
            lambda: self.state in (*ENDED, *also), f"job {self.name} ends", self, timeout_s
        )
        return self.state

    def wait_for_restart(self, restarts: int) -> None:
        """Until it is back in the queue by itself for the so-manieth time; it then starts soon.

        Not at once: a node refuses what was submitted in the second in which it ended the same job.
        """

        def requeued() -> bool:
            facts = self.facts()
            assert facts["JobState"] not in ENDED, self.cluster.with_logs(
                f"{facts['JobState']}, not requeued", self
            )
            return int(facts["Restarts"]) == restarts and facts["JobState"] in (
                "PENDING",
                "RUNNING",
            )

        self.cluster.until(requeued, f"job {self.name} is requeued for restart {restarts}", self)
        if self.state == "PENDING":
            self.cluster.call("scontrol", "update", f"JobId={self.name}", "StartTime=now+2")


class Cluster:
    """Started on construction; `stop` leaves no process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = free_ports(3)
        (folder / "state").mkdir()
        for node in NODES:
            (folder / "spool" / node).mkdir(parents=True)
        self._conf = folder / "slurm.conf"
        host = socket.gethostname().split(".")[0]
        self._conf.write_text(CONFIGURATION.format(host=host, ports=ports, folder=folder))
        # A job gets the environment of who submits it. The environment that the tests run in must
        # be found, as a user's would.
        ours = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(self._conf),
        }
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM", "OMP_", "DISTILL_"))
        }
        self._environment = {**kept, **ours}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._start("slurmctld", "slurmctld", "-D", "-c")
            for node in NODES:
                self.start_node(node)
            self.until(
                lambda: self._idle() == len(NODES), "both nodes are idle", timeout_s=TIMEOUT_S
            )
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, *command: str) -> None:
        program = find(command[0])
        assert program
        self._daemons[name] = subprocess.Popen(
            [program, *command[1:]],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _idle(self) -> int:
        shown = self.call("scontrol", "show", "node", "-o", check=False)
        return sum("State=IDLE " in line for line in shown.splitlines())

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def wait_idle(self) -> None:
        """Until every node is up and free."""
        self.until(lambda: self._idle() == len(NODES), "both nodes are idle")

    def call(self, *command: str, check: bool = True) -> str:
        """A SLURM command's output."""
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: object, log: str = "job-%j.log") -> Job:
        """sbatch with these arguments, from the cluster's folder."""
        name = self.call(
            "sbatch", "--parsable", f"--output={self.folder}/{log}", *map(str, arguments)
        ).strip()
        return Job(self, name, self.folder / log.replace("%j", name))

    def until(
        self,
        true: Callable[[], bool],
        what: str,
        job: Job | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Wait until something is so; fail with the logs if it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                pytest.fail(self.with_logs(f"{what}: not within {timeout_s} s", job))
            time.sleep(0.2)

    def with_logs(self, what: str, job: Job | None = None) -> str:
        """A message with what SLURM and the job have logged."""
        parts = [what]
        if job:
            parts += [
                self.call("scontrol", "show", "job", job.name, check=False),
                f"--- {job.name}\n{job.log[-6000:]}",
            ]
        for name in ("slurmctld", *NODES):
            log = self.folder / f"{name}.log"
            parts.append(f"--- {name}\n{log.read_text()[-1500:] if log.exists() else 'no log'}")
        return "\n".join(parts)

    # ---- processes -------------------------------------------------------------------------------

    def _ours(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Process ids and environments of everything that this cluster has started."""
        mark = f"SLURM_CONF={self._conf}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue  # it has ended
                if mark in words:
                    pairs = (word.decode(errors="replace").partition("=") for word in words if word)
                    yield int(entry.name), {key: value for key, _, value in pairs}

    def processes_of_jobs(self) -> list[int]:
        """What jobs have started and has not ended."""
        return [pid for pid, environment in self._ours() if "SLURM_JOB_ID" in environment]

    def kill_node(self, node: str) -> None:
        """As if its power failed: slurmd, slurmstepd and every task of it, with SIGKILL."""
        tasks = [
            pid for pid, environment in self._ours() if environment.get("SLURMD_NODENAME") == node
        ]
        managers = {
            parent
            for pid in tasks
            if (parent := parent_of(pid)) and name_of(parent).startswith("slurmstepd")
        }
        assert managers, f"{node} runs nothing"
        self._daemons[node].kill()
        for pid in (*managers, *tasks):
            kill(pid)
        self._daemons.pop(node).wait()

    def stop(self) -> None:
        """End jobs and daemons."""
        if self._daemons:
            self.call("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for pid, _ in list(self._ours()):
            kill(pid)


def parent_of(pid: int) -> int:
    """The parent's process id; 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
