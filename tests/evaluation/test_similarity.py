"""Minibatch CKA against the definition in float64, its invariances, and features that cannot be
measured.
"""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from cka import by_definition, hsic1
from torch import Tensor

from distill.evaluation.similarity import MIN_BATCH, CKASums, u_centred_gram


def cka(*batches: Sequence[Tensor]) -> list[list[float | None]]:
    """The CKA of all layers, from the features of each layer for each batch."""
    sums = CKASums(len(batches[0]), torch.device("cpu"))
    for layers in batches:
        sums.add(torch.stack([u_centred_gram(features) for features in layers]))
    return sums.cka()


def related(n: int, seed: int = 0, *widths: int) -> list[Tensor]:
    """Features [n, d] that share something, float64."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return [
        shared @ torch.randn(6, width, generator=generator, dtype=torch.float64)
        + torch.randn(n, width, generator=generator, dtype=torch.float64)
        for width in widths or (5, 9, 40)
    ]


def close(
    found: list[list[float | None]],
    expected: list[list[float]] | list[list[float | None]],
    by: float,
) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=by)


@pytest.mark.parametrize("sizes", [(4,), (12,), (10, 10), (10, 10, 5)])
def test_values_are_those_of_the_definition(sizes: tuple[int, ...]) -> None:
    batches = [related(n, seed) for seed, n in enumerate(sizes)]
    layers = [[layer.numpy() for layer in of_layer] for of_layer in zip(*batches, strict=True)]
    expected = [[by_definition(one, two) for two in layers] for one in layers]
    assert 0.05 < abs(expected[0][1]) < 0.95
    close(cka(*batches), expected, 1e-12)
    single = [[layer.float() for layer in batch] for batch in batches]
    close(cka(*single), expected, 1e-5)


def test_one_batch_is_the_u_statistic_of_all_images() -> None:
    first, second, _ = (layer.numpy() for layer in related(24))
    whole = hsic1(first @ first.T, second @ second.T) / math.sqrt(
        hsic1(first @ first.T, first @ first.T) * hsic1(second @ second.T, second @ second.T)
    )
    found = cka(related(24))[0][1]
    assert found == pytest.approx(whole, abs=1e-12)


def test_a_last_batch_counts_by_its_pairs_of_images() -> None:
    batches = [related(16, 0), related(16, 1), related(5, 2)]
    first, second, _ = ([b.numpy() for b in layer] for layer in zip(*batches, strict=True))
    found = cka(*batches)[0][1]
    assert found == pytest.approx(by_definition(first, second), abs=1e-12)
    equal = [hsic1(x @ x.T, y @ y.T) for x, y in zip(first, second, strict=True)]
    norms = [np.mean([hsic1(x @ x.T, x @ x.T) for x in of_layer]) for of_layer in (first, second)]
    assert (
        abs(np.mean(equal) / math.sqrt(norms[0] * norms[1]) - by_definition(first, second)) > 1e-3
    )


def test_orthogonal_maps_scales_and_shifts_change_nothing() -> None:
    batches = [related(16, seed) for seed in range(3)]
    generator = torch.Generator().manual_seed(9)
    maps = [
        torch.linalg.qr(torch.randn(w, w, generator=generator, dtype=torch.float64)).Q
        for w in (5, 9, 40)
    ]
    moved = [
        [
            layer @ m * s + t
            for layer, m, s, t in zip(batch, maps, (3.0, 1e-3, 50.0), (0, 7, -2), strict=True)
        ]
        for batch in batches
    ]
    close(cka(*moved), cka(*batches), 1e-12)
    stretched = [[layer * torch.arange(1, layer.shape[1] + 1) for layer in b] for b in batches]
    assert abs(cka(*stretched)[0][1] - cka(*batches)[0][1]) > 1e-3


def test_the_order_of_batches_and_of_images_in_them_changes_nothing() -> None:
    batches = [related(16, 0), related(16, 1), related(7, 2)]
    shuffled = [[layer.flip(0) for layer in batch] for batch in reversed(batches)]
    close(cka(*shuffled), cka(*batches), 1e-12)


def test_independent_features_are_not_similar() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        [torch.randn(64, width, generator=generator) for width in (1000, 300)] for _ in range(100)
    ]
    value = cka(*batches)[0][1]
    assert value is not None
    assert abs(value) < 0.01


def test_a_layer_is_as_itself_and_the_matrix_is_symmetric() -> None:
    found = torch.tensor(cka(related(16), related(9, 1)))
    torch.testing.assert_close(found.diagonal(), torch.ones(3))
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constant_features_are_not_measurable(dtype: torch.dtype) -> None:
    """Also such whose mean has a rounding error, and such that are constant in each batch."""
    changing = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 0.1, 1e4):
        batches = [(batch, torch.full((11, 7), value).to(dtype)) for batch in changing]
        found = cka(*batches)
        assert found[0][0] == pytest.approx(1)
        assert found[1] == [None, None]
        assert found[0][1] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_not_measurable(bad: float) -> None:
    first, second, third = related(8)
    second[3, 2] = bad
    found = cka([first, second, third])
    assert found[1] == [None, None, None]
    assert found[0][1] is None
    assert found[0][2] == pytest.approx(cka([first, third])[0][1], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_as_their_float64_copies(dtype: torch.dtype) -> None:
    """Also where a product of two features overflows in half precision."""
    batches = [[(300 * layer).to(dtype) for layer in related(32, seed)] for seed in range(2)]
    exact = [[layer.double() for layer in batch] for batch in batches]
    close(cka(*batches), cka(*exact), 1e-5)


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1e20, 1e37])
def test_no_scale_of_float32_overflows(scale: float) -> None:
    layers = [layer.float() for layer in related(16)]
    expected = cka(layers)
    scaled = [(layer.double() * scale).float() for layer in layers]
    # The smallest scale leaves numbers with a few digits, which the exact value is taken from.
    reference = cka([layer.double() / scale for layer in scaled])
    close(cka(scaled), reference, 1e-5)
    if scale > 1e-30:
        close(cka(scaled), expected, 1e-5)


def test_a_large_common_part_costs_no_digits() -> None:
    layers = [layer.float().double() for layer in related(16)]
    far = [(layer + 1000).float() for layer in layers]
    # Exactly what float32 stores of it:
    reference = cka([layer.double() - 1000 for layer in far])
    close(cka(far), reference, 1e-5)


def test_maps_of_any_memory_format_and_many_features() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(8, 24, 60, 60, generator=generator)  # more features than one product takes
    first = u_centred_gram(maps)
    last = u_centred_gram(maps.contiguous(memory_format=torch.channels_last))
    flat = u_centred_gram(maps.flatten(1).double())
    scale = float(flat.abs().max())
    assert float((first - flat).abs().max()) < 1e-5 * scale
    assert float((last - flat).abs().max()) < 1e-5 * scale


def test_autocast_does_not_round_the_products() -> None:
    features = torch.randn(16, 50, generator=torch.Generator().manual_seed(0))
    outside = u_centred_gram(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(u_centred_gram(features), outside)
    assert outside.dtype == torch.float64


def test_no_gradients_are_recorded() -> None:
    features = torch.randn(MIN_BATCH, 3, requires_grad=True)
    assert not u_centred_gram(features).requires_grad
