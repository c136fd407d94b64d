"""CKA of all pairs of layers against torch_cka and ckatorch: the same models, images and process,
taking turns.

    python -m benchmarks.similarity --layers 20 --images 128 --batch-size 64 --rounds 5

Both peers are optional: `pip install torch_cka ckatorch`; one that is missing is left out. The
models are transformers of random weights, whose blocks are the layers. Values are compared with the
U-statistic of each minibatch in float64, computed from stored features by the traces of Eq. 3.

torch_cka records gradients as it comes. ckatorch keeps the value of the last minibatch alone, and
takes the tokens of one image for examples; it gets the features of a minibatch as [1, n, d], so
that it computes the same quantity, of the last minibatch.
"""

import argparse
import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.runs import engine_on
from benchmarks.timing import (
    CLOCKS,
    Stopwatch,
    common_arguments,
    finish,
    interleaved,
    median,
    ratio,
    show,
)
from distill.engine import Engine
from distill.evaluation.similarity import CKASums
from distill.models.layers import layered
from distill.models.pixels import Pixels
from distill.release.similarity.measure import grams_of

_IMAGE_SIZE = 32

Loader = DataLoader[tuple[Tensor, ...]]
Values = np.ndarray
"""[L, L] CKA of each pair of layers."""


class Tapped(nn.Module):
    """A transformer whose blocks' features also pass as [1, n, d] through modules without effect,
    for ckatorch.
    """

    def __init__(self, net: nn.Module, num_layers: int) -> None:
        super().__init__()
        self.net = net
        self.taps = nn.ModuleList(nn.Identity() for _ in range(num_layers))

    def forward(self, x: Tensor) -> None:
        for tokens, tap in zip(block_tokens(self.net, x), self.taps, strict=True):
            tap(tokens.flatten(1)[None])


def block_tokens(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the output of each block of a transformer, [n, tokens, width]."""
    found = net.forward_intermediates(  # type: ignore[operator]
        images, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
    )
    return [torch.cat([prefix, patches], 1) for patches, prefix in found]


def model(seed: int, num_layers: int, width: int) -> nn.Module:
    """Return a small transformer with random weights."""
    torch.manual_seed(seed)
    net: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=_IMAGE_SIZE,
        patch_size=4,
        depth=num_layers,
        embed_dim=width,
        num_heads=2,
        num_classes=0,
    )
    return net.eval()


def ours(seeds: Sequence[int], size: tuple[int, int], engine: Engine) -> Callable[[Loader], Values]:
    pixels = Pixels((0, 0, 0), (1, 1, 1))
    networks = [
        layered(model(seed, *size), pixels, _IMAGE_SIZE, "blocks.*", "model", "--layers")
        for seed in seeds
    ]
    for network in networks:
        engine.place(network).eval()

    @torch.inference_mode()
    def measure(loader: Loader) -> Values:
        sums = CKASums(sum(len(network.layers) for network in networks), engine.device)
        for (images,) in loader:
            sums.add(grams_of(networks, [images.to(engine.device)] * 2, engine))
        return np.array(sums.cka(), dtype=float)[: size[0], size[0] :]

    return measure


def torch_cka(
    seeds: Sequence[int], size: tuple[int, int], engine: Engine
) -> Callable[[Loader], Values]:
    names = [f"blocks.{i}" for i in range(size[0])]
    made = import_module("torch_cka").CKA(
        *(model(seed, *size) for seed in seeds),
        *("A", "B", names, names, str(engine.device)),
    )

    def measure(loader: Loader) -> Values:
        made.compare(loader, loader)
        return made.hsic_matrix.detach().numpy()  # type: ignore[no-any-return]

    return measure


def ckatorch(
    seeds: Sequence[int], size: tuple[int, int], engine: Engine
) -> Callable[[Loader], Values]:
    names = [f"taps.{i}" for i in range(size[0])]
    first, second = (Tapped(model(seed, *size), size[0]) for seed in seeds)
    made = import_module("ckatorch").CKA(
        first, second, names, names, "A", "B", device=engine.device
    )

    def measure(loader: Loader) -> Values:
        return made(loader, epochs=1).cpu().numpy()  # type: ignore[no-any-return]

    return measure


def forward_alone(
    seeds: Sequence[int], size: tuple[int, int], engine: Engine
) -> Callable[[Loader], Values]:
    networks = [engine.place(model(seed, *size)) for seed in seeds]

    @torch.inference_mode()
    def measure(loader: Loader) -> Values:
        for (images,) in loader:
            for network in networks:
                network(images.to(engine.device))
        return np.full((size[0], size[0]), np.nan)

    return measure


def reference(seeds: Sequence[int], size: tuple[int, int], batches: Sequence[Tensor]) -> Values:
    """Return the CKA of Eq. 3 in float64, from stored features."""
    sums = np.zeros((3, size[0], size[0]))
    for images in batches:
        grams = []
        for seed in seeds:
            with torch.no_grad():
                features = block_tokens(model(seed, *size), images)
            rows = [tokens.flatten(1).double() for tokens in features]
            grams.append([(x @ x.T).fill_diagonal_(0).numpy() for x in rows])
        for i, k in enumerate(grams[0]):
            for j, l in enumerate(grams[1]):  # noqa: E741 - as in the paper
                weight = len(k) * (len(k) - 3)
                sums[:, i, j] += np.multiply(weight, (_hsic1(k, l), _hsic1(k, k), _hsic1(l, l)))
    found: Values = sums[0] / np.sqrt(sums[1] * sums[2])
    return found


def _hsic1(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    n = len(k)
    whole = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + whole - 2 / (n - 2) * (k @ l).sum()) / (n * (n - 3)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print times, ratios and differences. Returns 1 if our values are not those of Eq. 3."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=20, help="of each model")
    parser.add_argument("--width", type=int, default=64, help="of a token")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a CPU that others share"
    )
    common_arguments(parser, rounds=5)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with engine_on(options.device, precision="fp32", compile=False) as engine:
        return compare(options, engine)


def compare(options: argparse.Namespace, engine: Engine) -> int:
    """Time all contestants, and compare their values with Eq. 3."""
    size, seeds = (options.layers, options.width), (0, 1)
    shape = (options.images, 3, _IMAGE_SIZE, _IMAGE_SIZE)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    loader: Loader = DataLoader(TensorDataset(images), options.batch_size)
    makers = {"ours": ours, "torch_cka": torch_cka, "ckatorch": ckatorch}
    present = {n: make for n, make in makers.items() if n == "ours" or find_spec(n) is not None}
    for name in makers.keys() - present.keys():
        print(f"{name} is not installed: left out")
    present["forward alone"] = forward_alone
    values: dict[str, Values] = {}
    stopwatch = Stopwatch(engine.device, options.clock)

    def contestant(name: str, make: Callable[..., Callable[[Loader], Values]]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measure = make(seeds, size, engine)

        def run() -> None:
            # The peers draw progress bars and warn about their defaults.
            with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values[name] = measure(loader)

        return lambda: stopwatch(run)

    contestants = {name: contestant(name, make) for name, make in present.items()}
    for act in contestants.values():
        act()  # a first round that does not count
    seconds = interleaved(contestants, options.rounds)
    batches = list(images.split(options.batch_size))  # type: ignore[no-untyped-call]
    expected = {
        name: reference(seeds, size, batches[-1:] if name == "ckatorch" else batches)
        for name in makers
    }
    figures: dict[str, Any] = {}
    for name, own in seconds.items():
        line = f"{name:14} {show(median(own))} s, {show(ratio(own, seconds['ours']))} of ours"
        figures[name] = {"seconds": own, "ratio": ratio(own, seconds["ours"])._asdict()}
        if name in expected:
            gap = float(np.abs(values[name] - expected[name]).max())
            figures[name]["largest_difference"] = gap
            line += f"; largest difference from Eq. 3 in float64: {gap:.1e}"
        print(line)
    finish("similarity", options, engine.device, {"figures": figures})
    return int(figures["ours"]["largest_difference"] > 1e-4)


if __name__ == "__main__":
    raise SystemExit(main())
