"""ReviewKD (Chen et al., arXiv 2104.09044): the student's features of a level, fused with those of
all deeper levels, approach the teacher's features of that level.

Attention based fusion (ABF, Figure 3a): two convolutions and a gate of each level. Hierarchical
context loss (HCL, Figure 3b): the squared difference of two maps at several sizes. The sizes and
the weights of HCL, the first weights, and the switch of the loss by epochs are those of the
authors' code, which the VanillaKD paper's code shares.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.fitnet import averaged
from distill.losses.hint import Heads, Supervision
from distill.losses.outputs import FeatureMap

_MOST_CHANNELS = 512  # of the fused features
_POOLED_SIZES = (4, 2, 1)  # of HCL beside the full size; each weighs half of the one before


class ReviewKD(Heads):
    """The fusions of all levels, and the loss.

    Args:
        student, teacher: the features of the levels, from the largest map to the pooled features.
        warmup_epochs: the loss is multiplied by min(epoch / warmup_epochs, 1), so that it is 0 in
            epoch 0; with 0 it never is.
    """

    def __init__(
        self,
        student: Sequence[FeatureMap],
        teacher: Sequence[FeatureMap],
        warmup_epochs: int,
    ) -> None:
        super().__init__()
        assert len(student) == len(teacher), "a level is a pair"
        self.warmup_epochs = warmup_epochs
        self.scales = [
            (ours.scale, theirs.scale) for ours, theirs in zip(student, teacher, strict=True)
        ]
        width = min(_MOST_CHANNELS, student[-1].channels)
        self.fusions = nn.ModuleList(
            Fusion(ours.channels, width, theirs, fuses=ours is not student[-1])
            for ours, theirs in zip(student, teacher, strict=True)
        )
        for level, theirs in enumerate(teacher):
            windows = pooling_windows(theirs.height, theirs.width)
            self.register_buffer(f"windows_{level}", windows.float(), persistent=False)

    def forward(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return for each level the student's features in the shape of the teacher's."""
        found: list[Tensor] = []
        deeper: Tensor | None = None
        for features, (scale, _), fusion in reversed(
            list(zip(student, self.scales, self.fusions, strict=True))
        ):
            projected, deeper = fusion(rescaled(features, scale), deeper)
            found.append(projected)
        return tuple(reversed(found))

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        levels = [
            hcl(ours, rescaled(theirs, scale), self.get_buffer(f"windows_{level}"))
            for level, (ours, theirs, (_, scale)) in enumerate(
                zip(heads, teacher, self.scales, strict=True)
            )
        ]
        return self.strength(batch.epoch) * torch.stack(levels).sum()

    def strength(self, epoch: int) -> float:
        """Return the factor of the loss in an epoch, counted from 0."""
        return min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0


class Fusion(nn.Module):
    """ABF: fuses a level with the deeper ones, and projects the result to the teacher's width.

    The gate of the paper is one 1x1 convolution of both features side by side. It is linear, so
    here each of the two has its own, without a joined copy, and that of the deeper features runs at
    their smaller size.

    Args:
        channels: of the student's features.
        width: of the fused features.
        teacher: its features at this level.
        fuses: there is a deeper level.
    """

    def __init__(self, channels: int, width: int, teacher: FeatureMap, *, fuses: bool) -> None:
        super().__init__()
        self.size = teacher.height, teacher.width
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width)
        self.project = nn.Conv2d(width, teacher.channels, 3, padding=1, bias=False)
        self.project_norm = nn.BatchNorm2d(teacher.channels)
        for conv in (self.reduce, self.project):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.fuses = fuses
        if fuses:
            self.gate = nn.Conv2d(width, 2, 1)
            self.deeper_gate = nn.Conv2d(width, 2, 1, bias=False)
            bound = (2 * width) ** -0.5  # torch's, for the joined convolution
            for parameter in (self.gate.weight, self.gate.bias, self.deeper_gate.weight):
                assert parameter is not None
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, features: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the projected features [B, C_t, H_t, W_t] and the fused ones, for the next level.

        Args:
            features: [B, C, H, W] of the student.
            deeper: [B, width, h, w], the fused features of the level below; None at the deepest.
        """
        fused: Tensor = self.reduce_norm(self.reduce(features))
        if self.fuses:
            assert deeper is not None
            size = fused.shape[2:]
            gates = self.gate(fused) + resized(self.deeper_gate(deeper), size)
            own, other = gates.sigmoid().chunk(2, dim=1)
            fused = own * fused + other * resized(deeper, size)
        fused = resized(fused, self.size)
        return self.project_norm(self.project(fused)), fused


def resized(features: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map of another height and width, by nearest neighbours."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return F.interpolate(features, tuple(size), mode="nearest")


def hcl(student: Tensor, teacher: Tensor, windows: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of two maps and of the two averaged to 4x4, 2x2 and 1x1,
    weighted by 1, 1/2, 1/4, 1/8 over their sum. Scalar, float32.

    Sizes that are not below that of the map are left out, and the weights begin with those that
    remain.

    Args:
        student, teacher: [B, C, H, W]; no gradient flows into the teacher's.
        windows: `pooling_windows` of the map.
    """
    if windows is None:
        windows = pooling_windows(*student.shape[2:]).to(student.device)
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    # Averages are linear: those of the difference are the differences of the averages, and one
    # product with a constant matrix gives all of them, in one order of additions on CUDA too.
    difference = student.to(dtype) - teacher.detach().to(dtype)
    at_full_size = difference.square().mean() / _sum_of_weights(*student.shape[2:])
    if not windows.shape[1]:
        return at_full_size
    # bmm reads channels-last maps as they lie; matmul would copy them.
    averages = torch.bmm(difference.flatten(2), windows.to(dtype).expand(len(difference), -1, -1))
    return at_full_size + averages.square().sum(2).mean()


def pooling_windows(height: int, width: int) -> Tensor:
    """Return the matrix [H * W, windows] that averages a map over the windows of HCL's smaller
    sizes, times the root of each window's weight in the loss. float64.

    The windows are those of torch's `adaptive_avg_pool2d`.
    """
    total = _sum_of_weights(height, width)
    columns = [torch.empty(height * width, 0, dtype=torch.float64)]
    for weight, (high, wide) in _smaller_sizes(height, width):
        rows, lines = _intervals(height, high), _intervals(width, wide)
        columns.append(torch.kron(rows, lines) * (weight / total / (high * wide)) ** 0.5)
    return torch.cat(columns, dim=1)


def _intervals(length: int, count: int) -> Tensor:
    """Return the matrix [length, count] that averages a line over `count` intervals."""
    return F.adaptive_avg_pool1d(torch.eye(length, dtype=torch.float64), count)


def _smaller_sizes(height: int, width: int) -> list[tuple[float, tuple[int, int]]]:
    """Return weight, height and width of HCL's averaged maps."""
    smaller = [size for size in _POOLED_SIZES if size < max(height, width)]
    return [
        (0.5**rank, (min(size, height), min(size, width))) for rank, size in enumerate(smaller, 1)
    ]


def _sum_of_weights(height: int, width: int) -> float:
    return 1 + sum(weight for weight, _ in _smaller_sizes(height, width))


def rescaled(features: Tensor, scale: float) -> Tensor:
    """Return a map as a level compares it.

    Args:
        features: [B, C, H, W].
        scale: 4 or 2 makes pixels of channels, in the order of the released code: channel
            (i * scale + j) * C' + c of a position becomes channel c of its pixel (i, j), where
            C' = C / scale^2. 0.5 averages to half the height and width.
    """
    if scale == 1:
        return features
    batch, channels, height, width = features.shape
    if scale < 1:
        return averaged(features, *scaled_size(height, width, scale))
    side = int(scale)
    pixels = features.reshape(batch, side, side, channels // side**2, height, width)
    return pixels.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * side, width * side)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Return height and width of a rescaled map."""
    return max(1, int(height * scale)), max(1, int(width * scale))
