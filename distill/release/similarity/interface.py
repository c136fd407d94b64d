"""`distill.similarity`: the layers of models compared, from Python and for the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from distill.errors import InputError
from distill.models.layers import ALL
from distill.release.evaluate import Precision
from distill.release.passes import Unreadable
from distill.release.similarity.compare import Choice, compare_models
from distill.release.similarity.result import Similarity

_T = TypeVar("_T", str, int)


def layer_similarity(
    a: str | Path,
    b: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    num_images: int | None = None,
    layers_a: str = ALL,
    layers_b: str | Sequence[str] = ALL,
    model_a: str | None = None,
    model_b: str | Sequence[str] | None = None,
    student_a: str | None = None,
    student_b: str | Sequence[str] | None = None,
    weights_a: str = "best",
    weights_b: str | Sequence[str] = "best",
    image_size_a: int | None = None,
    image_size_b: int | Sequence[int] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    num_workers: int | None = None,
    precision: Precision = "fp32",
    unreadable: Unreadable = "error",
) -> Similarity:
    """Measures the unbiased minibatch CKA of all layers of A with all layers of each B, and prints
    a table. Collective under a launcher.

    What ends in `_b` is one value for all B, or a list with one for each of them.

    Args:
        a, b: models, as `distill evaluate` takes them: the folder of a run, a checkpoint or an
            export, a file of weights, a model of the Hub (hf://OWNER/NAME), or the name of a model
            of timm.
        output: the folder to write pictures, CSV and JSON to; None writes nothing.
        data: the images, labelled or not; None: the evaluation images of A, if it is a run.
        split: of `data`, if it has several.
        num_images: how many, drawn at random; None for all.
        layers_a, layers_b: "all" for timm's list, indices of it ("0,2,-1"), or names of modules
            ("layer*.*,act1").
        model_a, model_b: for a file of weights, the timm name of its model; "" for another B.
        student_a, student_b: for a run of several students, which one; "" for another B.
        weights_a, weights_b: for a run, "best"; or from its newest checkpoint "raw" or an average.
        image_size_a, image_size_b: in pixels; None: that of the model.
        batch_size: images of a minibatch.
        seed: of their order.
        num_workers: decoding processes; None: the CPU cores.
        precision: the data type of the models.
        unreadable: what to do with an image that cannot be read.

    Returns:
        The CKA of each pair of layers; None for a layer that is not measurable.

    Raises:
        InputError: there are no such models, layers or images; `output` holds other files.
    """
    others = [str(each) for each in ([b] if isinstance(b, str | Path) else b)]
    if not others:
        raise InputError("b: names no model: give one at least")
    count = len(others)
    choices = zip(
        others,
        _for_each("--model-b", model_b, count),
        _for_each("--student-b", student_b, count),
        _for_each("--weights-b", weights_b, count),
        _for_each("--image-size-b", image_size_b, count),
        _for_each("--layers-b", layers_b, count),
        strict=True,
    )
    return compare_models(
        Choice(str(a), model_a, student_a, weights_a, image_size_a, layers_a),
        [
            Choice(path, model, student, weights or "best", size, layers or ALL)
            for path, model, student, weights, size, layers in choices
        ],
        None if output is None else Path(output),
        data=None if data is None else str(data),
        split=split,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        precision=precision,
        unreadable=unreadable,
    )


def _for_each(option: str, given: _T | Sequence[_T] | None, count: int) -> list[_T | None]:
    """Return the value of an option for each of `count` models; "" counts as not given."""
    values = [given] if given is None or isinstance(given, str | int) else list(given)
    if len(values) not in (1, count):
        raise InputError(
            f"{option}: given {len(values)} times for {count} models: give it once, or once for"
            " each B"
        )
    chosen = [None if value == "" else value for value in values]
    return chosen if len(chosen) == count else chosen * count
