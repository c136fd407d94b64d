"""Optimizers that ZeRO may partition: those that update each weight independently."""

from collections.abc import Iterator

from distill.recipe.learning import OptimizerSpec

# timm's cautious Lion divides by a mean over the tensor, so arguments that are not in this list are
# refused.
ELEMENTWISE_ARGS = frozenset(
    {
        "betas",
        "eps",
        "amsgrad",
        "nesterov",
        "dampening",
        "maximize",
        "foreach",
        "fused",
        "layer_decay",
        "layer_decay_min_scale",
    }
)
# They update each weight independently, so that ZeRO may partition layers. A test checks each of
# them.
ELEMENTWISE_OPTIMIZERS = ("adamw", "adam", "sgd", "momentum", "lion")


def elementwise_problems(key: str, optimizer: OptimizerSpec, zero_stage: int) -> Iterator[str]:
    """Yield a message for each setting of an optimizer that is not known to work on partitions.

    Args:
        key: of the optimizer in the recipe.
        zero_stage: 1, 2 or 3.
    """
    if optimizer.name.lower() not in ELEMENTWISE_OPTIMIZERS:
        yield (
            f"{key}: {optimizer.name} is not known to update each weight independently, and"
            f" train.zero_stage {zero_stage} partitions layers, which would make it silently wrong"
            " (trust ratio of LAMB): use zero_stage: 0, or one of"
            f" {', '.join(ELEMENTWISE_OPTIMIZERS)}"
        )
    for odd in sorted(optimizer.args.keys() - ELEMENTWISE_ARGS)[:1]:
        yield (
            f"{key}.args.{odd}: not known to work on each weight independently, as"
            f" train.zero_stage {zero_stage} needs: remove it, or use zero_stage: 0"
        )
