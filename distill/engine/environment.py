"""What a launcher says of itself in environment variables, and what of it would contradict a recipe."""

from distill.errors import InputError

# What a launcher may set that would make the saved recipe lie: variable -> (values that say nothing, what to do instead).
_CONTRADICTIONS = {
    "ACCELERATE_MIXED_PRECISION": ({"", "no"}, "precision is train.precision in the recipe"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        {"", "1"},
        "accumulation follows from train.micro_batch_size in the recipe",
    ),
    "ACCELERATE_DYNAMO_BACKEND": ({"", "no", "NO"}, "compilation is train.compile in the recipe"),
    "ACCELERATE_USE_DEEPSPEED": ({"", "false"}, "students train under DDP"),
    "ACCELERATE_USE_FSDP": ({"", "false"}, "students train under DDP"),
    "ACCELERATE_USE_MEGATRON_LM": ({"", "false"}, "students train under DDP"),
}


def refuse_contradictions(environment: dict[str, str]) -> None:
    """Raises InputError when a launcher's setting contradicts the recipe: a run must be what its recipe says."""
    for variable, (silent, instead) in _CONTRADICTIONS.items():
        value = environment.get(variable, "")
        if value not in silent:
            raise InputError(f"{variable}={value}: {instead}; unset it, or take it out of the accelerate config")


def launched_processes(environment: dict[str, str]) -> int:
    """Processes that the launcher started, read before any group exists."""
    return int(environment.get("WORLD_SIZE", "1"))
