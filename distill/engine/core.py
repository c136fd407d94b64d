"""The engine: it configures Accelerate, process groups, precision and compilation.

Accelerate starts the process group, places models, wraps them in DDP and holds the trackers. We set
the precision ourselves: each student needs its own gradient scaler and a frozen teacher none, and
Accelerate has one for all.
"""

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import nn

from distill.engine import zero
from distill.engine.environment import check_launch
from distill.engine.host_memory import keep_freed_memory
from distill.engine.rendezvous import meeting, reach_master
from distill.engine.trackers import Tracking, start_trackers
from distill.errors import InputError
from distill.rng import MASK, seed_global

Result = TypeVar("Result")

_NO_TRACKING = Tracking()
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Processes, device and precision of a command."""

    def __init__(
        self,
        *,
        precision: str,
        zero_stage: int = 0,
        zero_offload: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        tracking: Tracking = _NO_TRACKING,
        timeout_s: float = 600,
    ) -> None:
        environment = dict(os.environ)
        num_processes = check_launch(
            environment, precision=precision, zero_stage=zero_stage, zero_offload=zero_offload
        )
        reach_master(environment, timeout_s)
        on_cpu = not torch.cuda.is_available() or environment.get(
            "ACCELERATE_USE_CPU", ""
        ).lower() in ("1", "true")
        group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s))
        shared: dict[str, Any] = {
            "mixed_precision": "no",
            "log_with": list(tracking.names) or None,
            "project_config": (
                ProjectConfiguration(logging_dir=str(tracking.directory))
                if tracking.directory
                else None
            ),
        }
        # One process partitions nothing, unless it moves weights to the host.
        self.partitioned = zero_stage > 0 and (num_processes > 1 or zero_offload)
        if self.partitioned and on_cpu and torch.cuda.is_available():
            raise InputError(
                "train.zero_stage: DeepSpeed takes the GPUs that it finds: to stay on the CPU, hide"
                " them with CUDA_VISIBLE_DEVICES= as well"
            )
        zero.bound_waits(timeout_s)
        with meeting(timeout_s):
            if self.partitioned:
                with zero.accelerate_environment(on_cpu):
                    plugin = zero.training_plugin(
                        zero_stage, zero_offload, "cpu" if on_cpu else "cuda"
                    )
                    group.backend = "gloo" if on_cpu else "nccl"
                    self.accelerator = Accelerator(
                        deepspeed_plugin=plugin, kwargs_handlers=[group], **shared
                    )
            else:
                ddp = DistributedDataParallelKwargs(
                    broadcast_buffers=False, gradient_as_bucket_view=True
                )
                self.accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[ddp, group], **shared)
        self._ended_together = False
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        if self.world_size != num_processes:
            raise InputError(
                f"the launcher started {num_processes} processes and they"
                f" found {self.world_size}: without GPUs start them with torchrun and"
                " ACCELERATE_USE_CPU=true"
            )
        self.precision = precision
        self._channels_last = channels_last
        self.compiles = compile
        self._tracking = tracking
        self._tracks = False
        self._timeout_s = timeout_s
        self._groups: dict[int, Any] = {}
        # The group between the hosts, for CUDA; on the CPU it is the process group itself.
        self._hosts: Any = None
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            # "fp32" means float32 values and TF32 products, for students and teachers: products of
            # 10 bits instead of 23, at several times the speed; no recipe of the paper needs more.
            # torch's default is TF32 in convolutions and not in matmuls.
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        else:
            keep_freed_memory()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return autocast for a student's forward; losses compute in float32 all the same."""
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """Return a gradient scaler under fp16, else None. Each student has its own, so an overflow
        of one does not change the scale of the others.
        """
        return torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None

    def place(self, module: nn.Module, *, partitioned: bool = False) -> nn.Module:
        """Move a module to the device, in the memory format of the run; weights to be partitioned
        stay contiguous.
        """
        module = module.to(self.device)
        return (
            module.to(memory_format=torch.channels_last)
            if self._channels_last and not partitioned
            else module
        )

    def compile_(self, module: nn.Module) -> None:
        """Compile the module's forward in place if the run compiles. The names in its state dict
        stay.
        """
        if self.compiles:
            # Training and evaluation have one shape each: a graph for each of the two.
            module.compile(dynamic=False)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module to call in training: compiled if the run compiles, under DDP if there
        are several processes. Collective: every rank.
        """
        self.compile_(module)
        with warnings.catch_warnings():
            # torch 2.15 deprecates broadcast_buffers; older versions lack the replacement, which
            # synchronises buffers anyway.
            warnings.filterwarnings(
                "ignore", message=".*broadcast_buffers.*", category=FutureWarning
            )
            prepared: nn.Module = self.accelerator.prepare_model(module, device_placement=False)
        return prepared

    def forget_prepared(self) -> None:
        """Drop Accelerate's references to all that was prepared, so that a model which is no longer
        called frees the gradient buckets of its DDP.
        """
        self.accelerator.free_memory()

    def partition_frozen(self, model: nn.Module, *, offload: bool, dtype: torch.dtype) -> nn.Module:
        """Partition a frozen model over the processes (ZeRO-3) and return what to call instead of
        it. Collective: every rank.
        """
        return zero.partition_frozen(model, offload=offload, device=self.device, dtype=dtype)

    def prepare_partitioned(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch_size: int,
        num_forwards: int,
        clip_grad_norm: float | None,
    ) -> Any:
        """Return DeepSpeed's engine around a module and its optimizer, in a partitioned run.
        Collective: every rank.
        """
        zero.fit_plugin(
            self.accelerator.state.deepspeed_plugin,
            num_parameters=sum(parameter.numel() for parameter in module.parameters()),
            micro_batch_size=micro_batch_size,
            num_forwards=num_forwards,
            clip_grad_norm=clip_grad_norm,
        )
        self.accelerator.gradient_accumulation_steps = num_forwards
        # Only accelerator.backward wants to know the last model prepared; it is not called here,
        # and it would warn of the second.
        self.accelerator.deepspeed_engine_wrapped = None
        with zero.quiet():
            prepared, _ = self.accelerator.prepare(module, optimizer)
        return prepared

    @contextmanager
    def accumulating(self, module: nn.Module, more_to_come: bool) -> Iterator[None]:
        """Return a context whose backward keeps gradients on their process if `more_to_come`, and
        averages them over processes otherwise.
        """
        if more_to_come and isinstance(module, nn.parallel.DistributedDataParallel):
            with module.no_sync():
                yield
        else:
            yield

    def seed_forward(self, key: int) -> None:
        """Seed the generators that a forward draws from (dropout): those of the CPU, and that of
        this process's device.
        """
        seed_global(key)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(key & (MASK >> 1))

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over processes, in place. Collective: every rank."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the maximum over processes, in place. Collective: every rank."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def statistics_group(self, size: int) -> Any:
        """Return this process's group of `size` neighbouring processes; None for a size of 1.
        Neighbours share a machine if the size divides its number of processes. Collective at the
        first call with a size: every rank.
        """
        if size == 1:
            return None
        if size not in self._groups:
            self._groups[size] = (
                dist.group.WORLD
                if size == self.world_size
                else dist.new_subgroups(size, timeout=timedelta(seconds=self._timeout_s))[0]
            )
        return self._groups[size]

    def connect_hosts(self) -> None:
        """Make the group that `any_on_hosts` uses; on the CPU it is the process group itself.
        Collective: every rank.

        Raises:
            InputError: gloo does not find the network's interface.
        """
        if self.world_size == 1 or self.device.type == "cpu" or self._hosts is not None:
            return
        try:
            self._hosts = dist.new_group(backend="gloo", timeout=timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            raise InputError(
                "gloo did not connect the processes, which streams need besides NCCL: name the"
                " network's interface in GLOO_SOCKET_IFNAME, such as eth0"
                f" ({str(error).splitlines()[0]})"
            ) from error

    def any_on_hosts(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is True on any process. The hosts exchange the flags, so
        no device is waited for. Collective: every rank.
        """
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._hosts)
        return [bool(flag) for flag in raised.tolist()]

    def average_(self, tensors: list[torch.Tensor], group_size: int | None = None) -> None:
        """Average float tensors over processes, in place, in one message. Collective: every rank.

        For BatchNorm's running statistics: their update is linear, so averaging now or later gives
        the same result.

        Args:
            group_size: average over statistics groups of this size instead of all processes.
        """
        size = self.world_size if group_size is None else group_size
        if size > 1 and tensors:
            flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
            dist.all_reduce(flat, group=None if group_size is None else self.statistics_group(size))
            flat.div_(size)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_(
                tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
            )

    def on_main(self, act: Callable[[], Result]) -> Result:
        """Call a function on the main process, and return its result on every process. Collective:
        every rank.

        On an error all processes end: the main process raises it, so it is shown once, the others
        exit with code 2 for bad input and 1 for anything else.
        """
        outcome: list[tuple[Any, int | None]] = [(None, None)]
        error: Exception | None = None
        if self.is_main:
            try:
                outcome = [(act(), None)]
            except Exception as raised:
                error, outcome = raised, [(None, 2 if isinstance(raised, InputError) else 1)]
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, device=self.device)
        result, code = outcome[0]
        self._ended_together = code is not None
        if error is not None:
            raise error
        if code is not None:
            raise SystemExit(code)
        return result  # type: ignore[no-any-return]

    def start_trackers(
        self, run_name: str, output: Path, config: dict[str, Any], step: int
    ) -> None:
        """Start TensorBoard, wandb or trackio, where the recipe names them. Collective: every rank.

        Args:
            output: the run's folder, which holds the run's id.
            step: steps done so far.

        Raises:
            InputError: a tracker does not start: no account, no network, a folder that cannot be
                written.
        """
        tracking = self._tracking
        if tracking.names:
            self.on_main(
                lambda: start_trackers(self.accelerator, tracking, run_name, output, config, step)
            )
            self._tracks = True

    def track(self, values: dict[str, float], step: int) -> None:
        """Send scalars to the trackers."""
        if self._tracks:
            self.accelerator.log(values, step=step)

    def close(self, failed: bool = False) -> None:
        """End trackers and the process group.

        Args:
            failed: this process ends with an error. Unless all processes know of it, the group
                stays: destroying it waits for collectives in flight, which the others never join
                (with gloo, for timeout_s), and the launcher ends the others only after this
                process.
        """
        if self._tracks:
            # Not end_training(), which also takes the group down.
            for tracker in self.accelerator.trackers:
                tracker.finish()
        if failed and self.world_size > 1 and not self._ended_together:
            return
        # DDP holds the group in reference cycles. Left to the interpreter's exit, gloo's threads
        # aborted there once.
        self.accelerator.free_memory()
        gc.collect()
        self._groups.clear()
        zero.leave_group()
        if dist.is_initialized():
            dist.destroy_process_group()
        zero.forget()
        # Accelerate keeps its state in class attributes; without this a second command in the same
        # process would find a destroyed group.
        AcceleratorState._reset_state(reset_partial_state=True)

    def device_name(self) -> str:
        """Return the name of this process's device, for reports."""
        return (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else self.device.type
        )

    def free_memory_bytes(self) -> int | None:
        """Return the free memory of this process's device; None on the CPU."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None

    def peak_memory_bytes(self) -> int:
        """Return the peak memory: of the device's allocator on CUDA, of the process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
