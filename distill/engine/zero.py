"""DeepSpeed's ZeRO: its configuration, a frozen model in shards, and where on this process each
weight of a trained model lies.

Weights stay float32 under every stage, and autocast computes in less where the recipe asks for it,
as under DDP: so a stage says where things lie and not what is computed, and a checkpoint of one
continues under another. DeepSpeed's own bf16 mode would cast the norms and the loss of accuracy
would depend on the stage.
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
# Gradients sent at once. DeepSpeed's 5e8 would take 2 GB for every student, however small; 200 MB
# is far above where links saturate.
BUCKET_SCALARS = 50_000_000
_set_here: set[str] = set()  # variables that were not there before
_WAITS = ("default_pg_timeout", "default_pg_nccl_timeout")
_torchs_linear = torch.nn.functional.linear
_torchs_waits = {name: getattr(dist.distributed_c10d, name) for name in _WAITS}


def load_deepspeed(device_type: str) -> Any:
    """Import DeepSpeed, told which device it works on.

    Raises:
        InputError: it is not installed.
    """
    if device_type == "cpu":
        if "DS_ACCELERATOR" not in os.environ:
            _set_here.add("DS_ACCELERATOR")
        os.environ["DS_ACCELERATOR"] = (
            "cpu"  # else it guesses, and a process without a GPU may believe it is alone
        )
    os.environ.setdefault(
        "DS_SKIP_CUDA_CHECK", "1"
    )  # of compilers for kernels that nothing here builds
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(
            "train.zero_stage and teacher.placement: zero3 need DeepSpeed: pip install"
            " 'vanillakd[deepspeed]'"
        ) from error
    import deepspeed.ops

    deepspeed.logger.setLevel("WARNING")
    # A shared-memory all-reduce for CPUs that DeepSpeed compiles at first use: 87 s, for nothing
    # that is needed.
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
    """What Accelerate is given. Batch, accumulation and clipping are filled in for each student by
    `fit_plugin`.
    """
    plugin = DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": _zero_options(stage, offload, device_type == "cuda"),
            "zero_allow_untested_optimizer": True,  # the schema admits elementwise optimizers only
            "zero_force_ds_cpu_optimizer": (
                False
            ),  # DeepSpeed's own would be compiled, and is another Adam
            "steps_per_print": 10**9,
        }
    )
    # It tells transformers of the configuration, and fails where transformers is not installed,
    # which nothing here needs.
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
    bucket = min(
        BUCKET_SCALARS, num_parameters + num_parameters % 2
    )  # stages 1 and 2 want an even one
    plugin.deepspeed_config["zero_optimization"] |= {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }


def partition_frozen(
    model: nn.Module, *, offload: bool, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A frozen model under ZeRO-3: what is returned is called in its place, on every rank together.
    Collective: every rank.

    Outside Accelerate: a second prepared model would reset gradient accumulation and want to be
    saved. The result is no part of `model`, whose own parameters are empty from now on.
    """
    deepspeed = load_deepspeed(device.type)
    form_group_of_one()
    where = (
        {"offload_param": {"device": "cpu", "pin_memory": device.type == "cuda"}} if offload else {}
    )
    config = {
        "train_micro_batch_size_per_gpu": 1,
        # No linear of its own in the whole process, for a model that has no backward.
        "zero_optimization": {
            **_zero_options(3, False, False),
            **where,
            "memory_efficient_linear": False,
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 10**9,
    }
    # Parameter by parameter from the host: a model larger than the device never lies on it whole.
    deepspeed.zero.Init(
        module=model,
        config_dict_or_path=config,
        remote_device="cpu" if offload else None,
        mem_efficient_linear=False,
    )
    sharded, *_ = deepspeed.initialize(model=model, config=config)
    sharded.eval()
    return sharded  # type: ignore[no-any-return]


def form_group_of_one() -> None:
    """Give a process that no launcher started what DeepSpeed needs to make a group of it alone;
    `forget` takes it back.
    """
    if "RANK" in os.environ:
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = ("0", "0", "1", "1", "127.0.0.1", str(port))
    os.environ.update(zip(_LAUNCHER_VARIABLES, values, strict=True))
    _set_here.update(_LAUNCHER_VARIABLES)


def bound_waits(timeout_s: float) -> None:
    """Let groups made from now on give up after this long: DeepSpeed makes its own, with torch's
    defaults of 10 and 30 minutes.
    """
    for name in _WAITS:
        setattr(dist.distributed_c10d, name, timedelta(seconds=timeout_s))


@contextmanager
def accelerate_environment(on_cpu: bool) -> Iterator[None]:
    """Inside, Accelerate takes a DeepSpeed plugin, on the CPU too, where it does so only if nobody
    says "cpu".
    """
    load_deepspeed("cpu" if on_cpu else "cuda")
    form_group_of_one()
    # The plugin would refuse a launch file's own DeepSpeed settings, even those that agree;
    # `environment` has compared them.
    kept = {
        name: os.environ.pop(name, None)
        for name in ("ACCELERATE_USE_CPU", "ACCELERATE_CONFIG_DS_FIELDS")
    }
    if "ACCELERATE_USE_DEEPSPEED" not in os.environ:
        _set_here.add("ACCELERATE_USE_DEEPSPEED")  # Accelerate sets it when it gets a plugin
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in kept.items() if value is not None})


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, DeepSpeed does not warn of an "untested optimizer", which is any that it did not
    write.
    """
    import deepspeed

    level = deepspeed.logger.level
    deepspeed.logger.setLevel("ERROR")
    try:
        yield
    finally:
        deepspeed.logger.setLevel(level)


def forget() -> None:
    """Take back what this process said in the environment and of torch's waits."""
    # ZeRO-3 puts one of its own there, which keeps no gathered weights for the backward
    torch.nn.functional.linear = _torchs_linear
    for name, value in _torchs_waits.items():
        setattr(dist.distributed_c10d, name, value)
    for variable in _set_here:
        os.environ.pop(variable, None)
    _set_here.clear()


def leave_group() -> None:
    """Take down the process group that DeepSpeed worked in, if there is one: it keeps groups of its
    own, which outlive torch's.
    """
    if "deepspeed" in sys.modules:
        import deepspeed.comm.comm

        if deepspeed.comm.comm.cdb is not None and dist.is_initialized():
            deepspeed.comm.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None


# ---- where weights lie ---------------------------------------------------------------------------


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
    """The float32 masters that this process updates, and every parameter's place in them, under
    ZeRO-1, 2 or 3.

    The one place that reads DeepSpeed's inside; tests/distributed/test_zero.py holds it still.

    Args:
        engine: DeepSpeed's, just initialised.
        net: the trained model inside it, whose parameter names are used.
    """

    def __init__(self, engine: Any, net: nn.Module) -> None:
        self._optimizer = engine.optimizer
        self._stage = engine.zero_optimization_stage()
        self.net = net
        self.parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.shapes = {
            name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in self.parameters.items()
        }
        zero3 = self._stage == 3
        # A list by index: `flat_of` names the one that holds a parameter, on every process alike.
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
        """Of the parameters of which this process updates a part."""

    def _find_in_stages_1_and_2(self, parameter: nn.Parameter) -> Fragment | None:
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        part, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Fragment(mapping.param_group_index, part.start, whole.start, part.numel)

    def _find_in_stage_3(self, parameter: Any) -> Fragment | None:
        flat, start, padded = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        offset = padded * dist.get_rank()
        length = min(padded, parameter.ds_numel - offset)  # the last shard is padded
        return Fragment(flat, start, offset, length) if length > 0 else None

    @property
    def skipped(self) -> bool:
        """Whether the last step was not taken because a gradient was not finite; the same on every
        rank.
        """
        return bool(self._optimizer.overflow)

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that steps the flat masters."""
        optimizer: torch.optim.Optimizer = self._optimizer.optimizer
        return optimizer

    def gather(self, name: str, flats: Mapping[int, Tensor], onto: torch.device) -> Tensor:
        """One parameter, whole, out of tensors laid out as the masters are. float32, on the device
        `onto`. Collective: every rank.
        """
        whole = torch.zeros(self.shapes[name].numel(), dtype=torch.float32, device=onto)
        if (at := self.fragments.get(name)) is not None:
            whole[at.offset : at.offset + at.length] = flats[at.flat][
                at.start : at.start + at.length
            ].to(onto)
        dist.all_reduce(whole)  # of one fragment and zeros: exact
        return whole.view(self.shapes[name])

    def scatter(self, name: str, whole: Tensor, flats: Mapping[int, Tensor]) -> None:
        """Put this process's part of a whole parameter into tensors laid out as the masters are."""
        if (at := self.fragments.get(name)) is not None:
            part = whole.detach().flatten()[at.offset : at.offset + at.length]
            flats[at.flat][at.start : at.start + at.length].copy_(part)

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Give the model other weights: the masters, and what forwards read."""
        masters = dict(enumerate(flat.detach() for flat in self.flats))
        for name, parameter in self.parameters.items():
            self.scatter(name, weights[name], masters)
            if (
                parameter.data.shape == weights[name].shape
            ):  # whole here: stages 1 and 2, and what stage 3 finds too small to shard
                parameter.data.copy_(weights[name])
            if self._stage == 3 and (at := self.fragments.get(name)) is not None:
                part = weights[name].flatten()[at.offset : at.offset + at.length]
                parameter.ds_tensor.data[: at.length].copy_(part)  # type: ignore[attr-defined]
