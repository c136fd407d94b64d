"""`distill launch`: torchrun for commands of distill. It ends with their exit code, and a stop by a
signal without torchrun's traceback.
"""

import logging
import os
import signal
import sys
from typing import Annotated

import typer

INTERRUPTED = 75  # training.loop.INTERRUPTED, which would import timm here


def launch(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[OPTIONS OF TORCHRUN] COMMAND",
            help="What each process runs, such as: train my.yaml",
        ),
    ],
) -> None:
    """Start several processes of a command, all of them or those of this machine.

    Takes torchrun's options. By default it starts a process for each GPU.

    Examples:
      distill launch train my.yaml
      distill launch --nproc-per-node 2 train my.yaml
      distill launch --nnodes 4 --node-rank 0 --master-addr 10.0.0.1 train my.yaml
    """
    raise typer.Exit(launch_processes(arguments))


def launch_processes(arguments: list[str]) -> int:
    """Run a command of distill in several processes.

    Args:
        arguments: torchrun's options, and then the command.

    Returns:
        The exit code of the first process that failed, 75 after a signal to this process, or 0.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    parser = get_args_parser()
    parser.prog = "distill launch"
    num_gpus = torch.cuda.device_count()
    parser.set_defaults(nproc_per_node="gpu" if num_gpus else "1")
    options = parser.parse_args(arguments)
    options.training_script_args = [options.training_script, *options.training_script_args]
    options.training_script, options.module = "distill", True
    if options.nnodes in ("1", "1:1") and not options.rdzv_endpoint:
        options.standalone = True
    if not num_gpus:
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    # For the processes alone: they save and stop, and this process waits for them.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(options)  # type: ignore[no-untyped-call]
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        ended_by = signal.Signals(-failure.exitcode).name
        print(f"distill launch: process {rank} was ended by {ended_by}", file=sys.stderr)
        return 1
    return 0
