"""The environment variables of a launcher: they must be complete and agree with the recipe."""

from distill.errors import InputError

_OFF = ("", "false", "no", "n", "f", "0", "off")
# What Accelerate reads as yes or no; it raises a ValueError for anything else.
_FLAG = (*_OFF, "true", "yes", "y", "t", "1", "on")
_NONE = ("", "none")
_NOT_BUILT = "students train under DDP or, with train.zero_stage, under ZeRO"
_BATCH = "batches follow from train.batch_size_global and train.micro_batch_size"
_DEEPSPEED = "ACCELERATE_DEEPSPEED_"
_NEEDED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_HOW = "start it with torchrun, accelerate launch or a script of launchers/, which set them"
# Launchers that start several processes without WORLD_SIZE: each process would run alone.
_STARTERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
}


def check_launch(
    environment: dict[str, str],
    *,
    precision: str = "fp32",
    zero_stage: int = 0,
    zero_offload: bool = False,
) -> int:
    """Check what a launcher set. No network.

    Args:
        environment: variables of this process.
        precision, zero_stage, zero_offload: of the recipe's `train`; the defaults are those of a
            command without a recipe.

    Returns:
        The number of processes that the launcher started.

    Raises:
        InputError: a variable contradicts the recipe, is missing or malformed; names it and the
            fix.
    """
    _refuse_contradictions(environment, precision, zero_stage, zero_offload)
    _check_rendezvous(environment)
    return launched_processes(environment)


def _refuse_contradictions(
    environment: dict[str, str], precision: str, zero_stage: int, zero_offload: bool
) -> None:
    """Compare what `accelerate launch` sets (Accelerate 1.15) with the recipe, which alone decides.

    Variables that name the machine (ACCELERATE_USE_CPU, ACCELERATE_CPU_AFFINITY), that log, or that
    act only together with a refused one may have any value.

    Raises:
        InputError: a variable says otherwise; names it, what the recipe says, and the fix.
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
        # Weights that are partitioned when made; only transformers and zero.Init read it.
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
    """Return the number of processes that the launcher started, before any group exists.

    Raises:
        InputError: WORLD_SIZE is not a positive number.
    """
    value = environment.get("WORLD_SIZE", "")
    if value and not (value.isdigit() and int(value)):
        raise InputError(
            f"WORLD_SIZE={value}: should be the number of processes; a launcher (torchrun,"
            " accelerate launch) sets it"
        )
    return int(value or 1)


def _check_rendezvous(environment: dict[str, str]) -> None:
    """Check the variables that say how many processes there are and where they meet.

    Raises:
        InputError: a variable is missing, not a number, or out of range; names it and the fix.
    """
    given = {name: environment.get(name, "") for name in _NEEDED}
    if not given["WORLD_SIZE"]:
        for variable, starter in _STARTERS.items():
            count = environment.get(variable, "")
            if count.isdigit() and int(count) > 1:
                raise InputError(
                    f"{starter} started {count} processes of this command ({variable}), and none"
                    f" knows of the others: WORLD_SIZE is not set; {_HOW}"
                )
    if given["LOCAL_RANK"] == "-1":  # older launchers set it for one process
        given["LOCAL_RANK"] = ""
    if launched_processes(environment) == 1 and not given["LOCAL_RANK"]:
        return
    if missing := [name for name, value in given.items() if not value]:
        present = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        raise InputError(
            f"{present} means a launch of several processes, and a part of it is missing:"
            f" {', '.join(missing)} not set; {_HOW}. For one process, unset what is set"
        )
    world_size = launched_processes(environment)
    for name, limit in (("RANK", world_size), ("LOCAL_RANK", world_size), ("MASTER_PORT", 65536)):
        if not given[name].isdigit() or int(given[name]) >= limit:
            raise InputError(
                f"{name}={given[name]}: should be a number from 0 to {limit - 1}; {_HOW}"
            )
