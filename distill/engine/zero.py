"""DeepSpeed's ZeRO: its configuration, a partitioned frozen model, and where in this process each
weight of a trained model is.

Weights stay float32 under every stage, and autocast computes in less where the recipe says so, as
under DDP. So a stage decides where weights are and not what is computed, and a checkpoint of one
stage resumes under another. DeepSpeed's own bf16 mode would cast the norms too, with an accuracy
that depends on the stage.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from distill.errors import InputError

_LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
# Gradients sent at once. DeepSpeed's 5e8 would take 2 GB for every student, however small; links
# saturate far below 200 MB.
BUCKET_SCALARS = 50_000_000
_set_here: set[str] = set()  # environment variables that this process added
_WAITS = ("default_pg_timeout", "default_pg_nccl_timeout")
_torchs_linear = torch.nn.functional.linear
_torchs_waits = {name: getattr(dist.distributed_c10d, name) for name in _WAITS}


def load_deepspeed(device_type: str) -> Any:
    """Import DeepSpeed for a type of device.

    Raises:
        InputError: it is not installed.
    """
    if device_type == "cpu":
        if "DS_ACCELERATOR" not in os.environ:
            _set_here.add("DS_ACCELERATOR")
        # Otherwise DeepSpeed guesses, and a process without a GPU may take itself for the only one.
        os.environ["DS_ACCELERATOR"] = "cpu"
    # The check is of compilers for kernels that we do not build.
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(
            "train.zero_stage and teacher.placement: zero3 need DeepSpeed: pip install"
            " 'vanillakd[deepspeed]'"
        ) from error
    import deepspeed.ops

    deepspeed.logger.setLevel("WARNING")
    # A shared-memory all-reduce for CPUs, which we do not need: DeepSpeed would compile it at first
    # use, in 87 s.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _zero_options(stage: int, offload: bool, pin_memory: bool) -> dict[str, Any]:
    place = {"device": "cpu", "pin_memory": pin_memory}
    options: dict[str, Any] = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": False}
    if offload:
        options["offload_optimizer"] = place
        if stage == 3:
            options["offload_param"] = place
    return options


def training_plugin(stage: int, offload: bool, device_type: str) -> DeepSpeedPlugin:
    """Return the plugin for Accelerate; `fit_plugin` sets batch, accumulation and clipping of each
    student.
    """
    plugin = DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": _zero_options(stage, offload, device_type == "cuda"),
            # Recipes allow elementwise optimizers only.
            "zero_allow_untested_optimizer": True,
            # DeepSpeed's own CPU Adam would be compiled, and gives other results.
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
    )
    # It passes the configuration to transformers, and fails where transformers is not installed. We
    # do not need it.
    plugin.set_deepspeed_weakref = lambda: None
    return plugin


def fit_plugin(
    plugin: DeepSpeedPlugin,
    *,
    num_parameters: int,
    micro_batch_size: int,
    num_forwards: int,
    clip_grad_norm: float | None,
) -> None:
    """Set what differs between students. Without an entry for clipping Accelerate would clip at
    1.0.
    """
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": num_forwards,
        "gradient_clipping": clip_grad_norm or 0.0,
    }
    plugin.deepspeed_config.pop("train_batch_size", None)
    # Stages 1 and 2 need an even size.
    bucket = min(BUCKET_SCALARS, num_parameters + num_parameters % 2)
    plugin.deepspeed_config["zero_optimization"] |= {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }


def partition_frozen(
    model: nn.Module, *, offload: bool, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Partition a frozen model by ZeRO-3, and return what to call instead of it, on every rank
    together. Collective: every rank.

    Accelerate has no part in it: a second prepared model would reset gradient accumulation and be
    saved. The parameters of `model` are empty from now on.
    """
    deepspeed = load_deepspeed(device.type)
    form_group_of_one()
    pin_memory = device.type == "cuda"
    offloading = {"offload_param": {"device": "cpu", "pin_memory": pin_memory}} if offload else {}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        # DeepSpeed would replace torch's linear in this process; a model without backward gains
        # nothing from it.
        "zero_optimization": {
            **_zero_options(3, False, False),
            **offloading,
            "memory_efficient_linear": False,
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 10**9,
    }
    # The parameters move from the host one by one, so the model may be larger than the device.
    deepspeed.zero.Init(
        module=model,
        config_dict_or_path=config,
        remote_device="cpu" if offload else None,
        mem_efficient_linear=False,
    )
    partitioned, *_ = deepspeed.initialize(model=model, config=config)
    partitioned.eval()
    return partitioned  # type: ignore[no-any-return]


def form_group_of_one() -> None:
    """Set what DeepSpeed needs to make a group of one process that no launcher started; `forget`
    removes it.
    """
    if "RANK" in os.environ:
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = ("0", "0", "1", "1", "127.0.0.1", str(port))
    os.environ.update(zip(_LAUNCHER_VARIABLES, values, strict=True))
    _set_here.update(_LAUNCHER_VARIABLES)


def bound_waits(timeout_s: float) -> None:
    """Set the default timeout of new groups: DeepSpeed makes its own, with torch's defaults of 10
    and 30 minutes.
    """
    for name in _WAITS:
        setattr(dist.distributed_c10d, name, timedelta(seconds=timeout_s))


@contextmanager
def accelerate_environment(on_cpu: bool) -> Iterator[None]:
    """Return a context in which Accelerate takes a DeepSpeed plugin, also on the CPU, where it
    refuses one if ACCELERATE_USE_CPU is set.
    """
    load_deepspeed("cpu" if on_cpu else "cuda")
    form_group_of_one()
    # The plugin would refuse DeepSpeed settings of a launch file, even those that agree;
    # `environment` has compared them.
    removed = {
        name: os.environ.pop(name, None)
        for name in ("ACCELERATE_USE_CPU", "ACCELERATE_CONFIG_DS_FIELDS")
    }
    if "ACCELERATE_USE_DEEPSPEED" not in os.environ:
        _set_here.add("ACCELERATE_USE_DEEPSPEED")  # Accelerate sets it when it gets a plugin
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in removed.items() if value is not None})


@contextmanager
def quiet() -> Iterator[None]:
    """Return a context in which DeepSpeed does not warn of an "untested optimizer", which is every
    optimizer but its own.
    """
    import deepspeed

    level = deepspeed.logger.level
    deepspeed.logger.setLevel("ERROR")
    try:
        yield
    finally:
        deepspeed.logger.setLevel(level)


def forget() -> None:
    """Remove this process's settings: its environment variables, and the timeouts of groups."""
    # ZeRO-3 replaces it by its own, which keeps no gathered weights for the backward.
    torch.nn.functional.linear = _torchs_linear
    for name, value in _torchs_waits.items():
        setattr(dist.distributed_c10d, name, value)
    for variable in _set_here:
        os.environ.pop(variable, None)
    _set_here.clear()


def leave_group() -> None:
    """Destroy DeepSpeed's process groups, if there are any; they would outlive torch's."""
    if "deepspeed" in sys.modules:
        import deepspeed.comm.comm

        if deepspeed.comm.comm.cdb is not None and dist.is_initialized():
            deepspeed.comm.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None


# ---- where weights are ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Fragment:
    """The part of one parameter that this process updates: `length` elements at `start` of flat
    tensor `flat`, at `offset` of the parameter.
    """

    flat: int
    start: int
    offset: int
    length: int


class ZeroPartition:
    """The flat float32 weights ("masters") that this process updates under ZeRO-1, 2 or 3, and the
    place of every parameter in them.

    Only this class reads DeepSpeed's internals; tests/distributed/test_zero.py watches them.

    Args:
        engine: DeepSpeed's, just initialised.
        parameters: all that it trains, by the names to use here.
    """

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = engine.optimizer
        self._stage = engine.zero_optimization_stage()
        self.parameters = dict(parameters)
        self.shapes = {
            name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in self.parameters.items()
        }
        zero3 = self._stage == 3
        # `flat_of` is the index of the flat tensor with a parameter, the same on every process.
        self.flats: list[Tensor] = list(
            self._optimizer.fp32_partitioned_groups_flat
            if zero3
            else self._optimizer.single_partition_of_fp32_groups
        )
        if zero3:
            places = {
                id(p): self._optimizer.grad_position[self._optimizer.get_param_id(p)][0]
                for p in self.parameters.values()
            }
        else:
            places = {
                id(p): index
                for index, group in enumerate(self._optimizer.bit16_groups)
                for p in group
            }
        self.flat_of = {name: places[id(parameter)] for name, parameter in self.parameters.items()}
        find = self._find_in_stage_3 if zero3 else self._find_in_stages_1_and_2
        found = {name: find(parameter) for name, parameter in self.parameters.items()}
        self.fragments = {
            name: fragment for name, fragment in found.items() if fragment is not None
        }
        """The part of each parameter that this process updates, where it updates one."""

    def _find_in_stages_1_and_2(self, parameter: nn.Parameter) -> Fragment | None:
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        in_flat, in_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
        start, offset, length = in_flat.start, in_parameter.start, in_flat.numel
        return Fragment(mapping.param_group_index, start, offset, length)

    def _find_in_stage_3(self, parameter: Any) -> Fragment | None:
        flat, start, padded = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        offset = padded * dist.get_rank()
        length = min(padded, parameter.ds_numel - offset)  # the last part is padded
        return Fragment(flat, start, offset, length) if length > 0 else None

    @property
    def skipped(self) -> bool:
        """Whether the last step was skipped because a gradient was not finite; the same on every
        rank.
        """
        return bool(self._optimizer.overflow)

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that updates the masters."""
        optimizer: torch.optim.Optimizer = self._optimizer.optimizer
        return optimizer

    def gather(self, name: str, flats: Mapping[int, Tensor], onto: torch.device) -> Tensor:
        """Return one full parameter from tensors in the layout of the masters, in float32 on the
        device `onto`. Collective: every rank.
        """
        full = torch.zeros(self.shapes[name].numel(), dtype=torch.float32, device=onto)
        if (at := self.fragments.get(name)) is not None:
            part = flats[at.flat][at.start : at.start + at.length]
            full[at.offset : at.offset + at.length] = part.to(onto)
        dist.all_reduce(full)  # exact: each element is zero on all processes but one
        return full.view(self.shapes[name])

    def scatter(self, name: str, full: Tensor, flats: Mapping[int, Tensor]) -> None:
        """Copy this process's part of a full parameter into tensors laid out like the masters."""
        if (at := self.fragments.get(name)) is not None:
            part = full.detach().flatten()[at.offset : at.offset + at.length]
            flats[at.flat][at.start : at.start + at.length].copy_(part)

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the model's weights: the masters, and what forwards read."""
        masters = dict(enumerate(flat.detach() for flat in self.flats))
        for name, parameter in self.parameters.items():
            self.scatter(name, weights[name], masters)
            # Not partitioned: all under stages 1 and 2, and small ones under stage 3.
            if parameter.data.shape == weights[name].shape:
                parameter.data.copy_(weights[name])
            if self._stage == 3 and (at := self.fragments.get(name)) is not None:
                part = weights[name].flatten()[at.offset : at.offset + at.length]
                parameter.ds_tensor.data[: at.length].copy_(part)  # type: ignore[attr-defined]
