"""What a launcher says of itself in environment variables, and what of it would contradict a
recipe.
"""

from distill.errors import InputError

_OFF = ("", "false", "no", "n", "f", "0", "off")
_FLAG = (
    *_OFF,
    "true",
    "yes",
    "y",
    "t",
    "1",
    "on",
)  # what Accelerate can read as a yes or no; anything else is a ValueError there
_NONE = ("", "none")
_NOT_BUILT = "students train under DDP or, with train.zero_stage, under ZeRO"
_BATCH = "batches follow from train.batch_size_global and train.micro_batch_size"
_DEEPSPEED = "ACCELERATE_DEEPSPEED_"


def refuse_contradictions(
    environment: dict[str, str],
    *,
    precision: str = "fp32",
    zero_stage: int = 0,
    zero_offload: bool = False,
) -> None:
    """Compare what `accelerate launch` sets (Accelerate 1.15) with what the recipe says: a run must
    be what its recipe says.

    Variables that name the machine (ACCELERATE_USE_CPU, ACCELERATE_CPU_AFFINITY), log, or act only
    beside a refused one may be anything.

    Args:
        environment: variables of this process.
        precision, zero_stage, zero_offload: of the recipe's `train`; as they stand here for a
            command without one.

    Raises:
        InputError: a variable says otherwise; names it, what the recipe says, and the mend.
    """
    offload = "cpu" if zero_offload else "none"
    offload_parameters = "cpu" if zero_offload and zero_stage == 3 else "none"
    placed = (
        f"train.zero_offload is {str(zero_offload).lower()} and train.zero_stage {zero_stage} in"
        " the recipe"
    )
    # variable -> values that agree with the recipe, in lower case; what the recipe says
    rules: dict[str, tuple[tuple[str, ...], str]] = {
        "ACCELERATE_MIXED_PRECISION": (
            ("", "no", precision),
            f"precision is train.precision in the recipe, {precision}",
        ),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1"), f"{_BATCH} in the recipe"),
        "ACCELERATE_GRADIENT_CLIPPING": (
            _NONE,
            "clipping is students.NAME.optimizer.clip_grad_norm in the recipe",
        ),
        "ACCELERATE_DYNAMO_BACKEND": (("", "no"), "compilation is train.compile in the recipe"),
        "ACCELERATE_TORCH_DEVICE": (
            ("",),
            (
                "each process takes the GPU of its LOCAL_RANK (CUDA_VISIBLE_DEVICES chooses;"
                " ACCELERATE_USE_CPU=true means none)"
            ),
        ),
        "ACCELERATE_USE_CPU": (_FLAG, "it is true or false"),
        "ACCELERATE_USE_FSDP": (_OFF, _NOT_BUILT),
        "ACCELERATE_USE_MEGATRON_LM": (_OFF, _NOT_BUILT),
        "ACCELERATE_USE_PARALLELISM_CONFIG": (_OFF, _NOT_BUILT),
        "ACCELERATE_USE_SAGEMAKER": (_OFF, _NOT_BUILT),
        "ACCELERATE_USE_DEEPSPEED": (
            (*_OFF, "true") if zero_stage else _OFF,
            f"train.zero_stage is {zero_stage} in the recipe, which is DDP",
        ),
        f"{_DEEPSPEED}ZERO_STAGE": (
            ("", str(zero_stage)),
            f"train.zero_stage is {zero_stage} in the recipe",
        ),
        f"{_DEEPSPEED}OFFLOAD_OPTIMIZER_DEVICE": (("", offload), placed),
        f"{_DEEPSPEED}OFFLOAD_PARAM_DEVICE": (("", offload_parameters), placed),
        f"{_DEEPSPEED}OFFLOAD_OPTIMIZER_NVME_PATH": (_NONE, placed),
        f"{_DEEPSPEED}OFFLOAD_PARAM_NVME_PATH": (_NONE, placed),
        f"{_DEEPSPEED}CONFIG_FILE": (
            _NONE,
            (
                "DeepSpeed's configuration follows from train.zero_stage and train.zero_offload in"
                " the recipe"
            ),
        ),
        f"{_DEEPSPEED}MOE_LAYER_CLS_NAMES": (_NONE, "no model here has such layers"),
        # Weights made in shards; only transformers and zero.Init ask for it.
        f"{_DEEPSPEED}ZERO3_INIT": (
            _FLAG if zero_stage == 3 else _OFF,
            f"train.zero_stage is {zero_stage} in the recipe",
        ),
        f"{_DEEPSPEED}ZERO3_SAVE_16BIT_MODEL": (_FLAG, "checkpoints hold float32 weights"),
    }
    rules |= {
        name: ((*_OFF, "none"), f"precision is train.precision in the recipe, {precision}")
        for name in sorted(environment)
        if name.startswith("ACCELERATE_FP8_")
    }
    for variable, (agreeing, says) in rules.items():
        value = environment.get(variable, "")
        if value.lower() not in agreeing:
            raise InputError(
                f"{variable}={value}: {says}; unset it, or take it out of the accelerate config or"
                " command (or change the recipe)"
            )


def launched_processes(environment: dict[str, str]) -> int:
    """Processes that the launcher started, read before any group exists.

    Raises:
        InputError: WORLD_SIZE is no such number.
    """
    value = environment.get("WORLD_SIZE", "")
    if value and not (value.isdigit() and int(value)):
        raise InputError(
            f"WORLD_SIZE={value}: should be the number of processes; a launcher (torchrun,"
            " accelerate launch) sets it"
        )
    return int(value or 1)
