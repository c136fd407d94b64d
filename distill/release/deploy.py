"""A model as one file that runs without timm: ONNX, or a program of torch.export. What was written
is run again, and its answers are compared with the model's.

Both take images [B, 3, S, S] in [0, 1], of any number B: mean and std are part of the program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.models.export_format import ONNX_FILE, PROGRAM_FILE
from distill.models.pixels import Network

DeployFormat = Literal["onnx", "torch-export"]
_NEEDS_FOR_ONNX = ("onnx", "onnxscript", "onnxruntime")
# Batches of another size than the example's show whether the number of images is free.
_CHECKED_AT_ONCE = 5


@dataclass(frozen=True)
class Comparison:
    """The answers of a written file against those of the model.

    Attributes:
        num_images: on which they were compared.
        same_top1: how many of them have the same first class.
        largest: the largest difference of a logit.
    """

    num_images: int
    same_top1: int
    largest: float


def require(format: DeployFormat) -> None:
    """Raises InputError if a library for the format is not installed."""
    if format != "onnx":
        return
    if missing := [name for name in _NEEDS_FOR_ONNX if find_spec(name) is None]:
        raise InputError(
            f"--format onnx: needs {', '.join(missing)}: pip install 'vanillakd[onnx]'"
        )


def write_program(network: Network, images: Tensor, folder: Path, format: DeployFormat) -> None:
    """Write the file of a format into a folder.

    Args:
        network: a model with its pixels, in evaluation mode, on the CPU.
        images: [B, 3, S, S] in [0, 1], an example.

    Raises:
        InputError: the model cannot be written in this format.
    """
    example = images[:2].contiguous()
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=65536)}}
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
        if format == "torch-export":
            torch.export.save(program, folder / PROGRAM_FILE)
            return
        torch.onnx.export(
            program,
            (),
            folder / ONNX_FILE,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # exporters fail in too many ways to list
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise InputError(
            f"--format {format}: this model cannot be written so ({type(error).__name__}:"
            f" {reason}): use --format timm"
        ) from error


def compare(network: nn.Module, images: Tensor, folder: Path, format: DeployFormat) -> Comparison:
    """Run the written file on images and compare it with the model.

    Args:
        images: [N, 3, S, S] in [0, 1].
    """
    run = _runner(folder, format)
    same, largest = 0, 0.0
    with torch.inference_mode():
        for part in torch.split(images, _CHECKED_AT_ONCE):
            expected, found = network(part), run(part)
            same += int((expected.argmax(1) == found.argmax(1)).sum())
            difference = (expected - found).abs().max()
            if not difference.isfinite():
                raise InputError(
                    f"--format {format}: the model or the program gives logits that are not finite"
                )
            largest = max(largest, float(difference))
    return Comparison(len(images), same, largest)


def _runner(folder: Path, format: DeployFormat) -> Callable[[Tensor], Tensor]:
    if format == "torch-export":
        program: Any = torch.export.load(folder / PROGRAM_FILE).module()
        return lambda images: program(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / ONNX_FILE), providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
