"""What launchers say in the environment: contradictions are refused, a missing rendezvous is named;
and what gloo and NCCL say is put into words.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from ports import free_ports

from distill.__main__ import explain_error
from distill.engine import Engine, check_launch, launched_processes
from distill.engine.rendezvous import meeting, reach_master
from distill.engine.signals import Signals
from distill.errors import InputError
from distill.processes import is_launcher, speaks_first

WHOLE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
# What `accelerate launch` sets of its own accord.
QUIET = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_CPU_AFFINITY": "1",
}
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}


def test_what_agrees_is_accepted() -> None:
    check_launch({})
    check_launch(QUIET)
    check_launch({**QUIET, "ACCELERATE_MIXED_PRECISION": "bf16"}, precision="bf16")
    check_launch({**QUIET, **ZERO}, zero_stage=3)
    offloaded = {name: value.replace("none", "cpu") for name, value in ZERO.items()}
    check_launch(offloaded, zero_stage=3, zero_offload=True)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "train.precision"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "train.precision"),
        ("ACCELERATE_FP8_BACKEND", "TE", "train.precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.micro_batch_size"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "train.micro_batch_size"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "clip_grad_norm"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "train.compile"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:0", "CUDA_VISIBLE_DEVICES"),
        ("ACCELERATE_USE_CPU", "maybe", "true or false"),
        ("ACCELERATE_USE_FSDP", "true", "train.zero_stage"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "train.zero_stage"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "train.zero_stage"),
        ("ACCELERATE_USE_SAGEMAKER", "true", "DDP"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2", "train.zero_stage is 3"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "train.zero_offload is false"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "train.zero_offload is false"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH", "/fast", "train.zero_offload is false"),
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "zero.json", "train.zero_stage"),
        ("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", "Block", "no model here"),
    ],
)
def test_what_contradicts_is_refused_by_name(variable: str, value: str, says: str) -> None:
    with pytest.raises(
        InputError, match=f"^{variable}={value}: .*{re.escape(says)}.*unset it, or take it out"
    ):
        check_launch({**QUIET, **ZERO, variable: value}, zero_stage=3)


def test_zero_of_the_launcher_alone_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"ACCELERATE_USE_DEEPSPEED=true: train\.zero_stage is 0 in the recipe"
    ):
        check_launch(ZERO)
    with pytest.raises(InputError, match=r"OPTIMIZER_DEVICE=none: train\.zero_offload is true"):
        check_launch(ZERO, zero_stage=3, zero_offload=True)


def test_a_rendezvous_is_whole_or_named() -> None:
    check_launch({})
    check_launch(WHOLE)
    check_launch({"WORLD_SIZE": "1", "LOCAL_RANK": "-1"})
    check_launch({"SLURM_STEP_NUM_TASKS": "1"})
    for missing in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        with pytest.raises(
            InputError,
            match=rf"WORLD_SIZE=2.* is missing: {missing} not set; start it with torchrun",
        ):
            check_launch({name: value for name, value in WHOLE.items() if name != missing})
    with pytest.raises(InputError, match="is missing: WORLD_SIZE not set"):
        check_launch({name: value for name, value in WHOLE.items() if name != "WORLD_SIZE"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("LOCAL_RANK", "x"),
        ("MASTER_PORT", "http"),
    ],
)
def test_a_variable_that_cannot_be_is_named(variable: str, value: str) -> None:
    with pytest.raises(InputError, match=f"{variable}={value}: should be"):
        check_launch({**WHOLE, variable: value})


@pytest.mark.parametrize(
    ("variable", "starter"), [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")]
)
def test_tasks_that_do_not_know_of_each_other(variable: str, starter: str) -> None:
    with pytest.raises(
        InputError, match=f"{starter} started 4 processes of this command .*WORLD_SIZE is not set"
    ):
        check_launch({variable: "4"})
    check_launch({variable: "4", **WHOLE})
    assert launched_processes({variable: "4"}) == 1


def test_the_master_is_waited_for() -> None:
    (port,) = free_ports(1)
    where = {**WHOLE, "MASTER_PORT": str(port)}
    with socket.create_server(("127.0.0.1", port)):
        reach_master(where, 5)
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"no process answers at MASTER_ADDR=127\.0\.0\.1.*refused; waited 0\.5 s"
    ):
        reach_master(where, 0.5)
    assert time.monotonic() - start < 30, "not the 300 s of a launch"
    reach_master({**where, "RANK": "0"}, 0.5)  # it is the master
    with pytest.raises(InputError, match="no process answers"):
        reach_master({**where, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}, 0.3)


def test_other_errors_of_a_start_are_no_rendezvous() -> None:
    with pytest.raises(InputError, match="1 of 8 processes came to the rendezvous"), meeting(3):
        raise dist.DistStoreError(
            "Timed out after 4 seconds waiting for clients. 1/8 clients joined."
        )
    with pytest.raises(RuntimeError, match="out of memory"), meeting(3):
        raise RuntimeError("CUDA error: out of memory")


# As torch 2.15 says them, with gloo and with NCCL.
GONE = [
    (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"
        " [127.0.0.1]:1153. This is typically caused by"
    ),
    (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:536] Read error [127.0.0.1]:55711:"
        " Connection reset by peer"
    ),
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:456] writev [127.0.0.1]:2: Broken pipe",
    (
        "NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited or there was a network"
        " error, NCCL version 2.27.3\nncclRemoteError: A call"
    ),
    "NCCL communicator was aborted on rank 0. ",
]
LATE = [
    (
        (
            "[/pytorch/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv"
            " operation to complete"
        ),
        "4 s",
    ),
    ("wait timeout after 600000ms, keys: /default_pg/0//cuda//0", "600 s"),
    (
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7,"
            " OpType=ALLREDUCE, Timeout(ms)=20000) ran for 20001 milliseconds before timing out."
        ),
        "20 s",
    ),
    ("Socket Timeout", "train.timeout_s"),
]


def test_the_end_and_the_silence_of_another_process_are_distinguished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for text in GONE:
        message, code = explain_error(dist.DistBackendError(text)) or ("", 0)
        assert code == 1
        assert message.startswith("another process of this run has ended")
        assert "pair.cc" not in message
        assert "typically" not in message
    for text, waited in LATE:
        error = RuntimeError(text)
        error.add_note("after step 7")
        message, code = explain_error(error) or ("", 0)
        assert code == 1
        assert message.startswith(
            f"waited {waited} for another process of this run (train.timeout_s) after step 7: it"
            " hangs"
        )
        assert message.endswith("the same command resumes from the last checkpoint")
    assert explain_error(RuntimeError("CUDA out of memory")) is None
    assert explain_error(OSError("Connection reset by peer")) is None, "of a tracker's server, say"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert explain_error(RuntimeError(GONE[0])) is None


def test_the_first_on_a_machine_speaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert speaks_first()
    assert speaks_first(), "alone, always"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert speaks_first(), "without the folder, every process is the first"
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        assert speaks_first() is (rank == "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/nowhere/0/error.json")
    assert speaks_first()


def test_a_process_that_fails_alone_leaves_the_group_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taking it down would wait for the others: measured, 12 s of a timeout of 12 s where one
    collective was in flight.
    """
    taken_down = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: taken_down.append(True))
    engine = Engine(precision="fp32")
    engine.world_size = 2
    engine.close(failed=True)
    assert not taken_down
    engine.world_size = 1
    with pytest.raises(InputError):  # every rank learns of it
        engine.on_main(lambda: launched_processes({"WORLD_SIZE": "x"}))
    engine.world_size = 2
    engine.close(failed=True)
    assert taken_down


def test_one_of_several_that_fails_lives_to_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's SIGTERM comes while the error is still on its way up."""
    for processes, deaf in (("1", False), ("2", True)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            with pytest.raises(KeyError), Signals():
                raise KeyError
            assert [signal.getsignal(number) is signal.SIG_IGN for number in before] == [deaf, deaf]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@pytest.mark.parametrize(
    ("command", "launcher"),
    [
        ("/usr/bin/python3 /usr/bin/torchrun --nproc-per-node 2 -m distill", True),
        ("python -m torch.distributed.run --standalone", True),
        ("python3.11 -u -m accelerate.commands.launch -m distill", True),
        ("/env/bin/python /env/bin/accelerate launch -m distill", True),
        ("/env/bin/python3 /env/bin/distill launch train my.yaml", True),
        ("python -m distill launch --nproc-per-node 2 train my.yaml", True),
        ("python -m distill train launch", False),
        ("python -m pytest torchrun", False),
        ("python train.py torchrun", False),
        ("/bin/bash torchrun.sh", False),
        ("bash -c torchrun", False),
        ("slurmstepd: [12.0]", False),
        ("", False),
    ],
)
def test_only_launchers_take_their_ranks_with_them(command: str, launcher: bool) -> None:
    assert is_launcher(command.split(" ")) is launcher


def test_a_run_of_a_shell_outlives_it(tmp_path: Path) -> None:
    """nohup and tmux mean what they say: only a launcher's death ends a process. And end_with means
    the process that it names.
    """
    done = tmp_path / "done"
    for call, outlives in (
        ("end_with_launcher()", True),
        ("end_with(os.getppid(), signal.SIGKILL)", False),
    ):
        child = (
            "import os, pathlib, signal, time; from distill.processes import end_with,"
            f" end_with_launcher; {call}; print(flush=True); time.sleep(1);"
            f" pathlib.Path({str(done)!r}).touch()"
        )
        # The shell is killed once the child has spoken.
        shell = subprocess.Popen(
            ["/bin/sh", "-c", f'"{sys.executable}" -c "$0"; :', child],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert shell.stdout
        shell.stdout.readline()
        os.kill(shell.pid, signal.SIGKILL)
        shell.communicate(timeout=300)  # the pipe closes when the child has ended
        assert done.exists() is outlives
        done.unlink(missing_ok=True)
