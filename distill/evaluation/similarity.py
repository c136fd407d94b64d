"""Unbiased minibatch CKA: how similar the layers of models represent the same images.

For minibatches b of n images, with Gram matrices K and L of two layers (Nguyen, Raghu and Kornblith
2020, arXiv 2010.15327, Eq. 3):

    CKA(K, L) = mean_b HSIC1(K_b, L_b) / sqrt(mean_b HSIC1(K_b, K_b) * mean_b HSIC1(L_b, L_b))

HSIC1 is the unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012,
JMLR 13, Eq. 4). It equals <U(K), U(L)> / (n (n - 3)) with the U-centred matrices of Szekely and
Rizzo (2014, Annals of Statistics 42, Definition 2 and Proposition 1). The mean weights each batch
by n (n - 3), about its number of pairs of images, so that a smaller batch counts for less; the
weight cancels the denominator, and the mean is a sum of inner products.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MIN_BATCH = 4
"""The fewest images of a minibatch: HSIC1 divides by n - 3."""

# So many features are multiplied at a time, and the products are added in float64: one product of
# all 200,704 features of a ResNet's stage took 1.5 times as long on a CPU, with 5 times the error.
_FEATURES_AT_ONCE = 1 << 13


class CKASums:
    """The inner products of the U-centred Gram matrices of L layers, summed over minibatches.

    Attributes:
        sums: [L, L] float64. The sums of several processes may be added.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.sums = torch.zeros(num_layers, num_layers, dtype=torch.float64, device=device)

    def add(self, grams: Tensor) -> None:
        """Add a minibatch.

        Args:
            grams: [L, n, n] float64, of `u_centred_gram`.
        """
        rows = grams.flatten(1)
        self.sums.addmm_(rows, rows.T)

    def cka(self) -> list[list[float | None]]:
        """Return the CKA of each pair of layers, L x L values in [-1, 1].

        A layer whose own HSIC is not positive, since its features do not depend on the image, or
        not finite is not measurable: all its values are None.
        """
        norms = self.sums.diagonal().sqrt()
        measurable = (norms > 0) & norms.isfinite()
        # Only rounding leads out of [-1, 1] (Cauchy-Schwarz).
        values = (self.sums / norms[:, None] / norms).clamp(-1, 1)
        known = measurable[:, None] & measurable
        return [
            [value if is_known else None for value, is_known in zip(row, knowns, strict=True)]
            for row, knowns in zip(values.tolist(), known.tolist(), strict=True)
        ]


@torch.no_grad()
def u_centred_gram(features: Tensor) -> Tensor:
    """Return the U-centred Gram matrix of the features of n images, [n, n] float64.

    K_ij = <x_i, x_j> for i != j becomes K_ij - r_i / (n - 2) - r_j / (n - 2) + s / ((n - 1)(n - 2))
    with the sums r of the rows and s of the whole; the diagonal is zero.

    Products are of float32 (float64 for float64 features), of features that are scaled by a power
    of two, so that no product overflows, and shifted to mean zero, which U-centring ignores: large
    common parts would cost digits.

    Args:
        features: [n, ...] with n >= 4, of any float type.
    """
    n = len(features)
    assert n >= MIN_BATCH, n
    # Any order of the features gives the same products; that of the memory needs no copy.
    order = sorted(range(1, features.dim()), key=features.stride, reverse=True)
    flat = features.permute(0, *order).reshape(n, -1)
    dtype = torch.promote_types(flat.dtype, torch.float32)
    parts = torch.split(flat, _FEATURES_AT_ONCE, dim=1)
    largest = torch.stack([part.abs().max() for part in parts]).max().to(dtype)
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)  # of normal numbers in float32
    scale = torch.exp2(-exponent.double()).to(dtype)
    gram = torch.zeros(n, n, dtype=torch.float64, device=flat.device)
    with _exact_products(flat.device):
        for part in parts:
            columns = part.to(dtype) * scale
            columns -= columns[:1].clone()  # first, so that constant features become exact zeros
            columns -= columns.mean(0)
            gram += columns @ columns.T
    gram *= torch.exp2(2 * exponent.double())
    gram.fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram -= rows[:, None] + rows
    gram += rows.sum() / (n - 1)
    return gram.fill_diagonal_(0)


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Return a context whose products of float32 matrices have all their digits: neither autocast
    nor TF32.
    """
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
