"""The command `distill similarity`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

_OF_B = "The same for B: once for all, or once for each."
_LAYERS = (
    "all: those that timm's forward_intermediates lists; indices of them, 0,2,-1; or names of"
    " modules, with * for a part: 'layer*.*,act1'."
)


def similarity(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help=(
                "A run, a checkpoint, an export, a file of weights (with --model-a),"
                " hf://OWNER/NAME, or the name of a model of timm."
            ),
        ),
    ],
    b: Annotated[
        list[str],
        typer.Argument(metavar="B", help="The models to compare with; may be A itself."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help=(
                "The images: an image folder, a parquet or Arrow file, a saved data set, a stream"
                " or fashion_mnist. Default: the evaluation images of A, if it is a run."
            )
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of --data, if it has several.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Take so many images at random. Default: all."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")] = Path(
        "similarity"
    ),
    layers_a: Annotated[str, typer.Option(metavar="LAYERS", help=f"Of A. {_LAYERS}")] = "all",
    layers_b: Annotated[list[str] | None, typer.Option(metavar="LAYERS", help=_OF_B)] = None,
    model_a: Annotated[
        str | None, typer.Option(help="For a file of weights as A: the timm name of its model.")
    ] = None,
    model_b: Annotated[list[str] | None, typer.Option(help=_OF_B)] = None,
    student_a: Annotated[
        str | None, typer.Option(help="For a run of several students as A: which one.")
    ] = None,
    student_b: Annotated[list[str] | None, typer.Option(help=_OF_B)] = None,
    weights_a: Annotated[
        str,
        typer.Option(
            help="For a run as A: best; or from its newest checkpoint raw or an average, ema-0.999."
        ),
    ] = "best",
    weights_b: Annotated[list[str] | None, typer.Option(help=_OF_B)] = None,
    image_size_a: Annotated[
        int | None,
        typer.Option(min=8, help="Image size of A in pixels. Default: that of the model."),
    ] = None,
    image_size_b: Annotated[list[int] | None, typer.Option(min=8, help=_OF_B)] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a minibatch.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the images.")] = 0,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Number of decoding processes. Default: the CPU cores."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="The data type of the models.")
    ] = "fp32",
    unreadable: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with an image that cannot be read.")
    ] = "error",
) -> None:
    """Compare the layers of two models: unbiased minibatch CKA, as a heat map.

    Each model sees its own view of the same images. It writes similarity.png,
    .svg, .csv and .json; several B stand side by side in one picture. Any
    number of processes gives the same values.

    Examples:
      distill similarity runs/quickstart/teacher runs/quickstart/students \\
          --student-b kd
      distill similarity resnet50.a1_in1k resnet152.a1h_in1k \\
          beitv2_large_patch16_224.in1k_ft_in22k_in1k --data val --images 10000
      distill similarity exports/kd vit_tiny_patch16_224 --data photos \\
          --layers-a 'layer*.*' -o kd-and-vit
    """
    from distill.release.similarity.interface import layer_similarity

    layer_similarity(
        a,
        b,
        output=output,
        data=data,
        split=split,
        num_images=images,
        layers_a=layers_a,
        layers_b=layers_b or "all",
        model_a=model_a,
        model_b=model_b,
        student_a=student_a,
        student_b=student_b,
        weights_a=weights_a,
        weights_b=weights_b or "best",
        image_size_a=image_size_a,
        image_size_b=image_size_b,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        precision=precision,
        unreadable=unreadable,
    )
