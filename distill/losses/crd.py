"""CRD, contrastive representation distillation (Tian et al., arXiv 1910.10699): the embedding of a
sample by the student is close to that by the teacher, and far from those of other classes.

Both sides have a trained linear map to the unit sphere, and a bank with the last embeddings of each
training sample. A sample i is scored against the other side's bank by the critic of Eq. 19 with the
noise distribution 1 / N,

    h(i, j) = p / (p + k / N),   p = exp(<a_i, b_j> / temperature) / Z,

and the loss (the negative of Eq. 18) is -log h(i, i) - sum_j log(1 - h(i, j)) over k negatives
j, averaged over i. With u = <a_i, b_j> / temperature - log Z - log(k / N) these are softplus(-u) of
the positive and softplus(u) of each negative.

The released code draws k negatives of other classes for each sample, and gathers B k rows of the
bank twice. Here one set of k is drawn from all samples for a step, so that a matrix product gives
all scores. Of it a sample i leaves out itself and its own class, and k_i remain. Given k_i, these
are k_i samples drawn evenly from the other classes, so (k / k_i) sum_j softplus(u_ij) has the same
expectation as the sum over k of its own: k times the mean over the other classes. The estimate for
one sample is as good as that from k_i negatives; those of a batch share their negatives, so their
mean varies more.
"""

import math

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.all_reduce import Group
from distill.losses.bank import Bank, Entries, moved
from distill.losses.hint import Heads, Samples, Supervision
from distill.rng import hash64, hash64_array, permute

_SMALLEST_NORM = 1e-6
_NOT_SET = float("inf")


class CRD(Heads):
    """The two embeddings, the bank, and the loss.

    Args:
        student_channels, teacher_channels: widths of the pooled features.
        group: the processes that share a micro-batch.
        num_negatives: k.
        replacement: draw negatives with replacement.
        momentum: the share of the old embedding in the bank when a sample is seen again.
        width: of the embeddings.
        bank_on_host: keep the bank in host memory.
    """

    log_z: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        samples: Samples,
        group: Group | None,
        *,
        num_negatives: int,
        replacement: bool,
        temperature: float,
        momentum: float,
        width: int,
        bank_on_host: bool,
    ) -> None:
        super().__init__()
        assert replacement or num_negatives <= samples.count
        self.samples, self.group = samples, group
        self.num_negatives, self.replacement = num_negatives, replacement
        self.temperature, self.momentum = temperature, momentum
        self.student = nn.Linear(student_channels, width)
        self.teacher = nn.Linear(teacher_channels, width)
        self.bank = Bank(samples, width, on_host=bank_on_host)
        # Of the student's and of the teacher's embeddings.
        self.register_buffer("log_z", torch.full((2,), _NOT_SET))
        self._has_log_z = False  # it may be in a checkpoint too, which only the device knows
        self._negatives: Entries | None = None  # of the step
        self._seen: list[Entries] = []  # in the forwards of the step, as the bank will have them

    def forward(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Map the pooled features [B, C, 1, 1] of both sides to unit vectors [B, D], float32."""
        theirs = teacher[0].flatten(1).to(self.teacher.weight.dtype)
        maps = self.student(student[0].flatten(1)), self.teacher(theirs)
        return tuple(F.normalize(each.float(), dim=1, eps=_SMALLEST_NORM) for each in maps)

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        student, teacher_embedding = heads
        own = self.bank.read(self.samples.rows_of(batch.indices))
        if self._negatives is None:
            self._negatives = self.bank.read(self._draw(batch.step))
        negatives = self._negatives
        labels = batch.labels if self.samples.labelled else torch.full_like(batch.labels, -1)
        left_out = left_out_pairs(own.rows, labels, negatives)
        scores = (
            self._scores(student, own.teacher, negatives.teacher),
            self._scores(teacher_embedding, own.student, negatives.student),
        )
        if not self._has_log_z:
            self._set_log_z(torch.stack([log_mean_exp(*each, left_out) for each in scores]))
        shift = self.log_z + math.log(self.num_negatives / self.samples.count)
        terms = [
            noise_contrast(positive - each, negative - each, left_out)
            for (positive, negative), each in zip(scores, shift, strict=True)
        ]
        self._seen.append(
            Entries(
                own.rows,
                labels,
                moved(own.student, student, self.momentum),
                moved(own.teacher, teacher_embedding, self.momentum),
            )
        )
        return terms[0] + terms[1]

    def after_step(self) -> None:
        """Write the samples of the step into the bank, those of all processes in the order of the
        global batch. Collective: every rank.
        """
        if not self._seen:
            return
        # [num_forwards, samples of a forward, ...]
        seen = Entries(*(torch.stack(parts) for parts in zip(*self._seen, strict=True)))
        if (num_processes := self.samples.num_processes) > 1:
            numbers = _gathered(torch.stack((seen.rows, seen.labels), dim=-1), num_processes)
            vectors = _gathered(torch.cat((seen.student, seen.teacher), dim=-1), num_processes)
            seen = Entries(*numbers.unbind(-1), *vectors.chunk(2, dim=-1))
        rows, labels = seen.rows.flatten(), seen.labels.flatten()
        student, teacher = (each.flatten(0, -2) for each in (seen.student, seen.teacher))
        self.bank.write(Entries(rows, labels, student, teacher))
        self._seen, self._negatives = [], None

    def _scores(
        self, embeddings: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return <a, b> / temperature for [b, D] positives, [b], and [k, D] negatives, [b, k]."""
        scaled = embeddings / self.temperature
        return (scaled * positives).sum(1), scaled @ negatives.T

    def _draw(self, step: int) -> np.ndarray:
        """Return the negatives of a step, [k] int64 rows: a pure function of (seed, step), the same
        on every process and device.
        """
        key, places = hash64(self.samples.seed, "negatives", step), np.arange(self.num_negatives)
        if self.replacement:
            return (hash64_array(key, places) % np.uint64(self.samples.count)).astype(np.int64)
        return permute(places, self.samples.count, key)

    @torch.no_grad()
    def _set_log_z(self, log_mean: Tensor) -> None:
        """Set Z of both sides, unless a checkpoint has it: N times the mean of exp(score) over the
        first micro-batch of the run, so that it is the same for any number of processes. In the
        first loss of a session. Collective: every rank.

        Args:
            log_mean: [2], of this process's part of its micro-batch.
        """
        if self.samples.num_processes > 1:
            # The first micro-batch belongs to the first group.
            group_size = dist.get_world_size(self.group) if self.group else 1
            parts = [torch.empty_like(log_mean) for _ in range(self.samples.num_processes)]
            dist.all_gather(parts, log_mean)
            first = torch.stack(parts[:group_size])
            log_mean = first.logsumexp(0) - math.log(group_size)
        found = log_mean + math.log(self.samples.count)
        self.log_z.copy_(torch.where(self.log_z == _NOT_SET, found, self.log_z))
        self._has_log_z = True


def left_out_pairs(rows: Tensor, labels: Tensor, negatives: Entries) -> Tensor:
    """Return which of k negatives each of b samples leaves out, bool [b, k]: itself, and those of
    its class. Labels are not known for -1: images without labels, and rows not seen yet, which are
    random vectors of no class.
    """
    same_class = labels[:, None] == negatives.labels
    return (rows[:, None] == negatives.rows) | (same_class & (labels >= 0)[:, None])


def noise_contrast(positive: Tensor, negative: Tensor, left_out: Tensor) -> Tensor:
    """Return softplus(-positive) + (k / k_i) times the sum of softplus(negative) over the k_i
    negatives that are not left out; the mean over samples. Scalar.

    Args:
        positive: [b], u of the module's docstring.
        negative: [b, k].
        left_out: bool [b, k].
    """
    of_negatives = F.softplus(negative).masked_fill(left_out, 0).sum(1)
    return (F.softplus(-positive) + _share(left_out) * of_negatives).mean()


def log_mean_exp(positive: Tensor, negative: Tensor, left_out: Tensor) -> Tensor:
    """Return the log of the mean of exp over b positives and b k negatives, which the k_i that are
    not left out stand for. Scalar. Shapes as for `noise_contrast`.
    """
    num_samples, num_negatives = negative.shape
    of_negatives = negative.masked_fill(left_out, -math.inf).logsumexp(1) + _share(left_out).log()
    total = torch.logaddexp(positive, of_negatives).logsumexp(0)
    return total - math.log(num_samples * (num_negatives + 1))


def _share(left_out: Tensor) -> Tensor:
    """Return k / k_i, [b]; k for a sample that leaves out all."""
    num_negatives = left_out.shape[1]
    return num_negatives / (num_negatives - left_out.sum(1)).clamp(min=1)


def _gathered(values: Tensor, num_processes: int) -> Tensor:
    """Return [num_forwards, b, ...] of all processes as [num_forwards, num_processes, b, ...],
    which is the order of the global batch. Collective: every rank.
    """
    parts = [torch.empty_like(values) for _ in range(num_processes)]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts, dim=1)
