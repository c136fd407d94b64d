"""Loading weights into a model, strictly: names and shapes agree, or timm adapts them and a note
says so, or they are refused.
"""

import math
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from distill.errors import InputError

MAX_LISTED = 5
# Weights that depend on the image size; timm's converters resample only these.
_SIZED = re.compile(
    r"pos_embed|rel_pos|relative_position|position_bias|attention_bias|patch_embed\."
)
# BatchNorm's counter: it changes no output, and older checkpoints lack it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Fitted:
    """Weights under a model's own names and in its shapes.

    Attributes:
        adapted: what was resampled, a sentence for each kind of tensor.
        left_out: a sentence on other tensors of the file, or "".
    """

    state_dict: dict[str, Tensor]
    adapted: tuple[str, ...] = ()
    left_out: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes for the user."""
        return (*self.adapted, *([self.left_out] if self.left_out else []))


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the model's classifier modules, from its timm config; the first one has
    the number of classes.
    """
    config: Any = model.pretrained_cfg
    return _classifiers(config)


def _classifiers(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def head_classes(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> int:
    """Return the number of classes of weights: from their classifier, else from the timm config of
    their model.

    Names inside another module ("model.fc.weight", as Lightning writes them) count if all of them
    agree.
    """
    for name in _classifiers(config):
        if f"{name}.weight" in state_dict:
            return state_dict[f"{name}.weight"].shape[0]
        inside = {t.shape[0] for key, t in state_dict.items() if key.endswith(f".{name}.weight")}
        if len(inside) == 1:
            return inside.pop()
    return int(config["num_classes"])


def with_head_of(
    model: nn.Module, state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return weights for a student with the head that the model has, and a note if that changes
    them: a backbone takes no head of a file, and a file without one (the export of a backbone)
    leaves a classifier its own.
    """
    given = dict(state_dict)
    heads = tuple(f"{name}." for name in classifier_names(model))
    ours = {name: each for name, each in model.state_dict().items() if name.startswith(heads)}
    theirs = [name for name in given if name.startswith(heads)]
    if not ours and theirs:
        kept = {name: each for name, each in given.items() if name not in theirs}
        return kept, (f"the classifier of these weights ({theirs[0]}, ...) was left out",)
    body = model.state_dict().keys() - ours.keys()
    if ours and not theirs and body == given.keys():
        return given | ours, (f"these weights have no classifier: {heads[0]}* begins at random",)
    return given, ()


def apply_weights(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> tuple[str, ...]:
    """Load `state_dict` into a timm model, and return the notes of `fitted`."""
    found = fitted(model, state_dict, what)
    model.load_state_dict(found.state_dict)
    return found.notes


def fitted(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> Fitted:
    """Return weights under the model's names and in its shapes.

    If they do not agree, this removes a prefix that all of the model's names have in the file
    (Lightning and others nest the model in a module), then tries timm's converter for the
    architecture (`checkpoint_filter_fn`): it knows the original authors' names, and resamples what
    depends on the image size.

    Args:
        model: may be on "meta"; nothing is loaded.
        what: the file and its place in the recipe, which opens the message.

    Raises:
        InputError: naming the head when it has another number of classes, a patch size that is not
            the model's, and up to five names of each kind of mismatch.
    """
    given = dict(state_dict)
    if not _mismatch(model, given):
        return Fitted(_with_counters(model, given))
    nested, left_out = _without_prefix(model, given, what)
    converted = _converted(model, nested) if _mismatch(model, nested) else nested
    if mismatch := _mismatch(model, converted):
        raise InputError(f"{what}: {mismatch}")
    return Fitted(_with_counters(model, converted), resampled(nested, converted, what), left_out)


def refuse_not_finite(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Refuse NaN in weights, and infinite parameters. A buffer may be infinite, as a mask is.

    Args:
        what: as in `fitted`.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in state_dict.items():
        if tensor.is_meta:
            continue  # of a new head, which has no values yet
        values = tensor.float() if tensor.is_floating_point() else tensor
        if values.isnan().any() or (name in parameters and values.isinf().any()):
            raise InputError(
                f"{what}: {name} has values that are not finite, as after a training that diverged:"
                " give other weights"
            )


def _without_prefix(
    model: nn.Module, state_dict: dict[str, Tensor], what: str
) -> tuple[dict[str, Tensor], str]:
    """Return the weights under the one prefix that has every name of the model, and a note on other
    tensors of the file.
    """
    own = [name for name in model.state_dict() if not name.endswith(_COUNTER)]
    if not own or all(name in state_dict for name in own):
        return state_dict, ""
    prefixes = [
        key.removesuffix(own[0])
        for key in state_dict
        if key.endswith(f".{own[0]}")
        and all(key.removesuffix(own[0]) + name in state_dict for name in own)
    ]
    if len(prefixes) > 1:
        names = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        raise InputError(
            f"{what}: holds several models that fit ({names}): save the one you mean in a file of"
            " its own"
        )
    if not prefixes:
        return state_dict, ""
    prefix = prefixes[0]
    inside = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    left = len(state_dict) - len(inside)
    return inside, (
        f"{left} tensors outside {prefix}* are not the model's and were left out" if left else ""
    )


def _with_counters(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    missing = {
        k: v for k, v in model.state_dict().items() if k.endswith(_COUNTER) and k not in state_dict
    }
    return {**state_dict, **missing}


def _converted(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    convert = vars(sys.modules[type(model).__module__]).get("checkpoint_filter_fn")
    if convert is None:
        return state_dict
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scipy: NaN outside the interpolated table
            converted: Mapping[str, Tensor] = convert(dict(state_dict), model)
    # The converter is written for checkpoints of this architecture, and may fail in any way on
    # others.
    except Exception:
        return state_dict
    return dict(converted)


def _mismatch(model: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    own = model.state_dict()
    for name in classifier_names(model):
        key = f"{name}.weight"
        if key in own and key in state_dict and own[key].shape[0] != state_dict[key].shape[0]:
            return (
                f"its head has {state_dict[key].shape[0]} classes, the recipe's data"
                f" {own[key].shape[0]}"
            )
    missing = [key for key in own if key not in state_dict and not key.endswith(_COUNTER)]
    unexpected = [key for key in state_dict if key not in own]
    shapes = [
        f"{key} {tuple(state_dict[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and own[key].shape != state_dict[key].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("other shapes", shapes)]
    found = "; ".join(f"{title}: {_listed(names)}" for title, names in parts if names)
    return (
        f"these are not weights of {type(model).__name__} as the recipe builds it: {found}"
        if found
        else ""
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


# ---- what a converter adapted --------------------------------------------------------------------


def resampled(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], what: str
) -> tuple[str, ...]:
    """Return a note on each kind of tensor that was resampled: no tensor of the file has as many
    elements.

    Raises:
        InputError: the file's patches have another size than the model's: it is another model.
    """
    sizes = {tensor.numel() for tensor in before.values()}
    found: dict[str, str] = {}
    for name, tensor in after.items():
        source = before.get(name)
        changed = (
            source.numel() != tensor.numel() if source is not None else tensor.numel() not in sizes
        )
        if not changed or not _SIZED.search(name):
            continue
        if name.endswith("patch_embed.proj.weight") and source is not None and source.ndim == 4:
            raise InputError(
                f"{what}: its patches are {source.shape[-1]}x{source.shape[-1]} pixels, the model's"
                f" {tensor.shape[-1]}x{tensor.shape[-1]}: name the model of these weights, or set"
                " model_args.patch_size"
            )
        found.setdefault(re.sub(r"\d+", "*", name), _change(source, tensor, _patch_side(after)))
    return tuple(f"{name} {change}" for name, change in found.items())


def _change(before: Tensor | None, after: Tensor, patch: int | None) -> str:
    """Return "24x24 -> 14x14: trained at 384, used at 224", as far as the shapes show it."""
    new = _grid(after)
    old = _grid(before) if before is not None else None
    if old is None or new is None:
        shape = "another shape" if before is None else str(tuple(before.shape))
        return f"was resampled from {shape} to {tuple(after.shape)}"
    table = after.ndim == 2  # offsets from -(w-1) to w-1 in each direction
    if table:
        old, new = (old + 1) // 2, (new + 1) // 2
    sizes = f": trained at {old * patch}, used at {new * patch}" if patch and not table else ""
    return f"{'window ' if table else ''}{old}x{old} -> {new}x{new}{sizes}"


def _patch_side(state_dict: Mapping[str, Tensor]) -> int | None:
    weight = next(
        (t for key, t in state_dict.items() if key.endswith("patch_embed.proj.weight")), None
    )
    return int(weight.shape[-1]) if weight is not None and weight.ndim == 4 else None


def _grid(tensor: Tensor) -> int | None:
    """Return the side of the square grid in a table of positions, which may have up to five other
    tokens.
    """
    if tensor.ndim == 4:
        return (
            int(tensor.shape[-1]) if tensor.shape[-1] == tensor.shape[-2] else int(tensor.shape[1])
        )
    if tensor.ndim not in (2, 3):
        return None
    number = tensor.shape[0] if tensor.ndim == 2 else tensor.shape[1]
    return next((math.isqrt(number - more) for more in range(6) if _is_square(number - more)), None)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def size_in(state_dict: Mapping[str, Tensor]) -> int | None:
    """Return the image size that follows from position embeddings and patches of the weights; None
    if there are none.
    """
    patch = _patch_side(state_dict)
    if patch is None:
        return None
    for name, tensor in state_dict.items():
        side = (
            _grid(tensor) if name.endswith(("pos_embed", "relative_position_bias_table")) else None
        )
        if side:
            return patch * ((side + 1) // 2 if tensor.ndim == 2 else side)
    return None
