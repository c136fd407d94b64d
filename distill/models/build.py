"""timm models by name; errors name the recipe's key, where timm's come late or not at all."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_parameter_registration_hook

from distill.errors import InputError, did_you_mean
from distill.models import cifar as cifar  # registers its models
from distill.recipe import schema

# Arguments of timm.create_model that have their own key in a recipe, or do not make a classifier.
RESERVED = {
    "num_classes": "it follows from the data",
    "pretrained": "use weights",
    "checkpoint_path": "use weights",
    "pretrained_cfg": "use weights",
    "pretrained_cfg_overlay": "use weights",
    "drop_path_rate": "use drop_path",
    "drop_rate": "use the key drop_rate",
    "features_only": "the model must return logits",
}

# timm's largest models have 2,000 parameter tensors; building 20,000 takes a minute.
_MOST_TENSORS = 20_000


def create(
    name: str,
    *,
    num_classes: int | None,
    pretrained: bool = False,
    image_size: int | None = None,
    drop_path: float = 0.0,
    drop_rate: float = 0.0,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Call `timm.create_model`, with errors for users. Initial weights come from the global
    generators: see `create_student`.

    Args:
        name: a timm name, with or without a pretrained tag, or "hf_hub:owner/name" or
            "local-dir:path".
        num_classes: of the head; None keeps the number of the model's own weights.
        pretrained: load timm's weights. With another `num_classes` timm replaces their head by a
            random one.
        image_size: pixels, passed to models that are built for one size (ViT, BEiT, Swin ...); the
            others take any.
        model_args: further arguments of the model's constructor.

    Raises:
        InputError: no such model or tag, arguments that timm refuses, or pretrained weights that
            that cannot be loaded.
    """
    model_args = dict(model_args or {})
    for key in model_args:
        if key in RESERVED:
            raise InputError(f"model_args.{key} of {name}: {RESERVED[key]}")
    arguments: dict[str, Any] = dict(model_args)
    if image_size is not None and takes_image_size(name, model_args):
        arguments.setdefault("img_size", image_size)
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if drop_rate:
        arguments["drop_rate"] = drop_rate
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    config(name)
    try:
        with _bounded(name):
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except InputError:
        raise
    except Exception as error:  # constructors and downloads fail in too many ways to list
        if pretrained and _builds(name, arguments):
            raise _unavailable(name, error) from error
        raise _refused(name, error, arguments) from error
    return model


@contextmanager
def _bounded(name: str) -> Iterator[None]:
    """Return a context that raises InputError once the model being built has too many parameter
    tensors.
    """
    count = 0

    def counted(module: nn.Module, parameter_name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > _MOST_TENSORS:
            raise InputError(
                f"model_args of {name}: more than {_MOST_TENSORS:,} parameter tensors: lower its"
                " depth"
            )

    handle = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _builds(name: str, arguments: Mapping[str, Any]) -> bool:
    try:
        timm.create_model(name, **arguments)
    except Exception:
        return False
    return True


def student_without_memory(
    spec: schema.StudentSpec, *, num_classes: int, image_size: int
) -> nn.Module:
    """Return the architecture of a student on the device "meta": names and shapes, no weights."""
    with torch.device("meta"):
        return student_architecture(spec, num_classes, image_size, pretrained=False)


def student_architecture(
    spec: schema.StudentSpec, num_classes: int, image_size: int, pretrained: bool
) -> nn.Module:
    """Build the model of a student."""
    return create(
        spec.model,
        num_classes=num_classes,
        pretrained=pretrained,
        image_size=image_size,
        drop_path=spec.drop_path,
        drop_rate=spec.drop_rate,
        model_args=spec.model_args,
    )


def checkpoint_activations(model: nn.Module, name: str) -> None:
    """Let the model compute activations again in the backward, block by block, instead of storing
    them.

    Raises:
        InputError: timm cannot do it for this model, or the model has BatchNorm, whose running
            statistics would change twice a forward.
    """
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InputError(
            f"grad_checkpointing: {name} has BatchNorm, whose running statistics a second forward"
            " would move again; set it to false"
        )
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"grad_checkpointing: {name} has none in timm; set it to false") from error


def config(name: str) -> dict[str, Any]:
    """Return timm's pretrained config of a model name, with at least num_classes, input_size, mean
    and std.

    Raises:
        InputError: no such model, or no such pretrained tag of it, with the nearest names.
    """
    if ":" in name:
        return _config_from_source(name)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = (
            f"; one of the Hub is hf_hub:{name}"
            if "/" in name
            else did_you_mean(architecture, timm.list_models())
        )
        raise InputError(f"timm {timm.__version__} has no model {name!r}{hint}")
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        known = f": it has {', '.join(tags)}" if tags else ": timm has no pretrained weights of it"
        raise InputError(
            f"{architecture} has no pretrained tag {tag!r}{did_you_mean(tag, tags)}{known}"
        ) from error
    known = found.to_dict() if found is not None else PretrainedCfg().to_dict()
    return {"architecture": architecture, **known}


def _config_from_source(name: str) -> dict[str, Any]:
    source, _, location = name.partition(":")
    if source == "local-dir":
        found, architecture = _local_config(Path(location))
    elif source in ("hf_hub", "hf-hub"):
        try:
            found, architecture, _ = load_model_config_from_hf(location)
        except Exception as error:  # as in create: no network, no such repository, no permission
            raise _unavailable(name, error) from error
    else:
        raise InputError(f"model {name!r}: a source is hf_hub: or local-dir:, not {source!r}")
    if not timm.is_model(architecture):
        raise InputError(
            f"{name}: timm {timm.__version__} has no model"
            f" {architecture!r}{did_you_mean(architecture, timm.list_models())}"
        )
    usual = config(architecture)  # names the head, if a config written by hand does not
    head = {"classifier": usual["classifier"]} if "classifier" in usual else {}
    return {**PretrainedCfg().to_dict(), **head, **found, "architecture": architecture}


def _local_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the pretrained config and the architecture of an exported model; the config includes
    the number of classes and their names.
    """
    file = path / "config.json"
    if not file.is_file():
        raise InputError(f"{path}: no exported timm model: config.json is not there")
    if not is_timm_config(file):
        raise InputError(
            f"{file}: not the config.json of an exported timm model (architecture, pretrained_cfg)"
        )
    try:
        found, architecture, _ = load_model_config_from_path(path)
        return dict(found), str(architecture)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: not the config.json of an exported timm model ({type(error).__name__}:"
            f" {error})"
        ) from error


def is_timm_config(file: Path) -> bool:
    """Return whether a file is the config.json of a timm model; other programs also write files of
    this name.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # Older versions of timm wrote the contents of pretrained_cfg at the top level.
    return (
        isinstance(content, dict)
        and "architecture" in content
        and not {"pretrained_cfg", "input_size"}.isdisjoint(content)
    )


def config_source(name: str, known: Mapping[str, Any]) -> str:
    """Return where the config of a model name is from, for messages: a file, or timm's config of
    the resolved name.
    """
    source, _, location = name.partition(":")
    if source == "local-dir":
        return f"{location}/config.json"
    if location:
        return f"config.json of {name}"
    return f"timm's config of {timm_name(name, known)}"


def timm_name(name: str, known: Mapping[str, Any]) -> str:
    """Return timm's name of a model with the tag of its weights; another source's name as it is."""
    if ":" in name:
        return name
    architecture, tag = known.get("architecture", name), known.get("tag")
    return f"{architecture}{f'.{tag}' if tag else ''}"


def takes_image_size(name: str, model_args: Mapping[str, Any]) -> bool:
    """Return whether the model is built for one image size, as its argument `img_size`."""
    fixed = config(name).get("fixed_input_size", False)
    return (
        bool(fixed)
        and not model_args.get("dynamic_img_size", False)
        and model_args.get("strict_img_size", True)
    )


def _refused(name: str, error: Exception, arguments: Mapping[str, Any]) -> InputError:
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    if "drop_path_rate" in str(error):
        return InputError(f"drop_path: {name} has no stochastic depth in timm; set drop_path to 0")
    if "'drop_rate'" in str(error):
        return InputError(f"drop_rate: {name} has no dropout in timm; set drop_rate to 0")
    return InputError(
        f"model_args of {name}: timm refused ({given}): {type(error).__name__}: {error}"
    )


def _unavailable(name: str, error: Exception) -> InputError:
    """Return the error for pretrained weights that could not be loaded."""
    if "No pretrained weights exist" in str(error):
        return InputError(
            f"timm has no pretrained weights of {name}: give weights a file, or choose one of"
            " timm.list_pretrained()"
        )
    reason = str(error).strip().split("\n", 1)[0][:200]
    return InputError(
        f"the pretrained weights of {name} could not be loaded ({type(error).__name__}: {reason}):"
        " run once with network access to fill the cache (HF_HOME), or give weights a local"
        " .safetensors file; set HF_HUB_OFFLINE=1 where there is no network"
    )
