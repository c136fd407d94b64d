"""One pass of models over images, in which the CKA of all pairs of their layers is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill.data.augment import EvalTransform
from distill.data.loading.views import ViewLoader
from distill.data.records import Source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.sets import decoders
from distill.evaluation.similarity import MIN_BATCH, CKASums, u_centred_gram
from distill.models.layers import LayeredNetwork
from distill.models.view import Frame
from distill.release.passes import Unreadable, is_out_of_memory


@dataclass(frozen=True)
class Measured:
    """What a pass over images found.

    Attributes:
        cka: L x L values of all layers of all models, model after model; None is not measurable.
        num_images: images that count.
        num_left_out: images in minibatches that are too small.
        num_skipped: unreadable images.
    """

    cka: list[list[float | None]]
    num_images: int
    num_left_out: int
    num_skipped: int


@torch.inference_mode()
def measure(
    networks: Sequence[LayeredNetwork],
    frames: Sequence[Frame],
    source: Source,
    order: np.ndarray,
    engine: Engine,
    batch_size: int,
    num_workers: int | None = None,
    unreadable: Unreadable = "error",
) -> Measured:
    """Measure the CKA of all pairs of layers. Collective: every rank.

    A minibatch is on one process as a whole, so any number of processes measures the same.

    Args:
        networks: the models, in evaluation mode on the device.
        frames: of the view of each.
        order: [M] indices of the images, in the order in which they form minibatches.
        batch_size: images of a minibatch.
        num_workers: decoding processes; None: this process's share of the cores.
        unreadable: what to do with an image that cannot be read.

    Raises:
        InputError: no minibatch has enough images; it does not fit into memory.
    """
    views = list(dict.fromkeys(frames))
    num_layers = sum(len(network.layers) for network in networks)
    sums = CKASums(num_layers, engine.device)
    num_images = num_left_out = num_skipped = 0
    loader = ViewLoader(
        source,
        order,
        [EvalTransform(**vars(view)) for view in views],
        batch_size,
        rank=engine.rank,
        world_size=engine.world_size,
        num_workers=decoders(num_workers),
        device=engine.device,
        unreadable=unreadable,
    )
    try:
        with loader:
            for batch in loader:
                num_skipped += batch.num_skipped
                if len(batch) < MIN_BATCH:
                    num_left_out += len(batch)
                    continue
                num_images += len(batch)
                images = [batch.views[views.index(frame)] for frame in frames]
                sums.add(grams_of(networks, images, engine))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"--batch-size {batch_size}: the features of so many images do not fit into the memory"
            f" of {engine.device}: give a smaller one, fewer layers, or --precision bf16"
        ) from error
    counts = torch.tensor([num_images, num_left_out, num_skipped], device=engine.device)
    engine.sum_(sums.sums)
    num_images, num_left_out, num_skipped = engine.sum_(counts).tolist()
    if not num_images:
        raise InputError(
            f"no minibatch has {MIN_BATCH} images that can be read ({num_skipped} are unreadable):"
            " give more images"
        )
    return Measured(sums.cka(), num_images, num_left_out, num_skipped)


def grams_of(
    networks: Sequence[LayeredNetwork], images: Sequence[torch.Tensor], engine: Engine
) -> torch.Tensor:
    """Return the U-centred Gram matrices of all layers of all models, [L, n, n] float64."""
    num_layers = sum(len(network.layers) for network in networks)
    n = len(images[0])
    grams = torch.empty(num_layers, n, n, dtype=torch.float64, device=engine.device)
    first = 0
    for network, own in zip(networks, images, strict=True):

        def take(place: int, features: torch.Tensor, first: int = first) -> None:
            grams[first + place] = u_centred_gram(features)

        with engine.autocast():
            network(own, take)
        first += len(network.layers)
    return grams
