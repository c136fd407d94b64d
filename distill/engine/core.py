"""The only place that configures Accelerate, process groups, precision and compilation.

Accelerate starts the processes' group, places models, wraps them in DDP and carries the trackers.
Precision is ours, not Accelerate's: each student needs its own gradient scaler (trap 10) and a
frozen teacher none, and Accelerate has one for all.
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
    """Processes, device, precision. One for the life of a command."""

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
        # Weights sharded over one process are not sharded, unless they move to the host.
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
        self._compile = compile
        self._tracking = tracking
        self._tracks = False
        self._timeout_s = timeout_s
        self._groups: dict[int, Any] = {}
        self._hosts: Any = (
            None  # their group over the network, where there is one beside the devices'
        )
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            # "fp32" means float32 values and TF32 products, for students and teachers alike: 10
            # bits of a product's 23, which no recipe of the paper needs, at several times the
            # speed. torch would take TF32 in convolutions and not in matmuls.
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        else:
            keep_freed_memory()

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast for a student's forward; losses leave it by computing in float32."""
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """A gradient scaler of its own for each student under fp16, so that one's overflow leaves
        the others' scale alone.
        """
        return torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None

    def place(self, module: nn.Module, *, partitioned: bool = False) -> nn.Module:
        """To the device, in the memory format of the run; weights that go into shards keep their
        plain order.
        """
        module = module.to(self.device)
        return (
            module.to(memory_format=torch.channels_last)
            if self._channels_last and not partitioned
            else module
        )

    def compile_(self, module: nn.Module) -> None:
        """Compile the module's forward in place, when the run is compiled. Names in its state dict
        stay.
        """
        if self._compile:
            module.compile(
                dynamic=False
            )  # two shapes, training's and evaluation's: each its own graph, whatever came first

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module to call in training: compiled when asked, under DDP when there are several
        processes. Collective: every rank.
        """
        self.compile_(module)
        with warnings.catch_warnings():
            # torch 2.15 calls broadcast_buffers deprecated; what replaces it does not exist before,
            # nor keep buffers unsynced.
            warnings.filterwarnings(
                "ignore", message=".*broadcast_buffers.*", category=FutureWarning
            )
            prepared: nn.Module = self.accelerator.prepare_model(module, device_placement=False)
        return prepared

    def partition_frozen(self, model: nn.Module, *, offload: bool, dtype: torch.dtype) -> nn.Module:
        """A frozen model in shards over the processes (ZeRO-3): call the result in its place.
        Collective: every rank.
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
        """DeepSpeed's engine around a module and its optimizer, when the run is sharded.
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
        """Inside, gradients stay on their process when `more_to_come`, and are averaged over
        processes otherwise.
        """
        if more_to_come and isinstance(module, nn.parallel.DistributedDataParallel):
            with module.no_sync():
                yield
        else:
            yield

    def seed_forward(self, key: int) -> None:
        """Seed what a forward draws (dropout): the CPU generators, and this process's device
        generator.
        """
        seed_global(key)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(key & (MASK >> 1))

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over processes, in place. Collective: every rank."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Maximum over processes, in place. Collective: every rank."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def statistics_group(self, size: int) -> Any:
        """The group of `size` neighbouring processes that this one is in; None for a size of 1.
        Neighbours share a machine where the size divides the processes of one. Collective when a
        size is first asked for: every rank.
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
        """Make what `any_on_hosts` talks through; on the CPU that is the processes' own group.
        Collective: every rank.

        Raises:
            InputError: the network's interface is not found.
        """
        if self.world_size == 1 or self.device.type == "cpu" or self._hosts is not None:
            return
        try:
            self._hosts = dist.new_group(backend="gloo", timeout=timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            raise InputError(
                "gloo did not connect the processes, which streams need beside NCCL: name the"
                " network's interface in GLOO_SOCKET_IFNAME, such as eth0"
                f" ({str(error).splitlines()[0]})"
            ) from error

    def any_on_hosts(self, *flags: bool) -> list[bool]:
        """Each flag: whether it is raised on some process. Between the hosts, so that no device is
        waited for. Collective: every rank.
        """
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._hosts)
        return [bool(flag) for flag in raised.tolist()]

    def average_(self, tensors: list[torch.Tensor]) -> None:
        """Mean over processes of float tensors, in place, in one message. Collective: every rank.

        For BatchNorm's running statistics: their update is linear, so averaging now or later gives
        the same averages.
        """
        if self.world_size > 1 and tensors:
            flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
            dist.all_reduce(flat)
            flat.div_(self.world_size)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_(
                tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
            )

    def on_main(self, act: Callable[[], Result]) -> Result:
        """Let the main process act, and give every process its result. Collective: every rank.

        On an error all end: the main process by raising it, which shows it once, the others with an
        exit code: 2 for bad input, 1 for a fault.
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
            failed: this process ends by an error. Unless all learnt of it together, the group is
                left as it is: taking it down waits for collectives in flight, which the others
                never join (with gloo, all of timeout_s), and the launcher ends the others only
                after this process.
        """
        if self._tracks:
            # Not end_training(), which also takes the group down.
            for tracker in self.accelerator.trackers:
                tracker.finish()
        if failed and self.world_size > 1 and not self._ended_together:
            return
        # What DDP wrapped holds the group, in reference cycles: left to the interpreter's exit,
        # gloo's threads once aborted there.
        self.accelerator.free_memory()
        gc.collect()
        self._groups.clear()
        zero.leave_group()
        if dist.is_initialized():
            dist.destroy_process_group()
        zero.forget()
        # Accelerate keeps its state in class attributes; without this a second command in one
        # process would find a dead group.
        AcceleratorState._reset_state(reset_partial_state=True)

    def device_name(self) -> str:
        """What a report calls the device of a process."""
        return (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else self.device.type
        )

    def free_memory_bytes(self) -> int | None:
        """What the device of this process has free now; None on the CPU, where nobody can say."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None

    def peak_memory_bytes(self) -> int:
        """Peak memory: of the device's allocator on CUDA, of the process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
