"""Profiles of models: bytes, FLOPs and kernels for any number of images. Numbers without torch.

One FLOP is one multiplication or one addition: a product of matrices [m, k] and [k, n] has 2 m k n.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Line:
    """A quantity that is linear in the number of images: `fixed + per_image * images`."""

    fixed: float = 0.0
    per_image: float = 0.0

    def at(self, images: float) -> float:
        return self.fixed + self.per_image * images


def through(small: float, large: float, num_small: int, num_large: int) -> Line:
    """The line through the counts for two numbers of images. Neither its slope nor its value at 0
    is negative.
    """
    slope = max(0.0, (large - small) / (num_large - num_small))
    return Line(max(0.0, small - slope * num_small), slope)


@dataclass(frozen=True)
class Product:
    """A kernel that multiplies matrices (linear, convolution, attention): its FLOPs, and the bytes
    that it reads and writes.
    """

    flops: Line
    traffic: Line


@dataclass(frozen=True)
class Pass:
    """One pass of a model over a micro-batch.

    Attributes:
        products: the products of one forward.
        times: how many times the pass does the work of `products`: 1 for a forward, 3 with the
            backward (two products for each), 4 with gradient checkpointing (a second forward).
        other_bytes: memory traffic of all other kernels in the pass: each reads its inputs and
            writes its outputs once.
        num_kernels: the number of kernels in the pass, in eager mode.
    """

    products: tuple[Product, ...]
    times: int
    other_bytes: Line
    num_kernels: int

    def forward_flops(self, images: float) -> float:
        """FLOPs of one forward."""
        return sum(product.flops.at(images) for product in self.products)

    def flops(self, images: float) -> float:
        """FLOPs of the complete pass."""
        return self.times * self.forward_flops(images)


@dataclass(frozen=True)
class TeacherProfile:
    """The counts of a teacher.

    Attributes:
        parameters: number of weights.
        weight_bytes: bytes of weights and buffers in their dtypes (BatchNorm stays float32).
        largest_bytes: bytes of the module with most weights, which ZeRO-3 gathers at once.
        dtype: "fp32", "bf16" or "fp16".
        working: peak bytes of a forward without gradients, in addition to weights and images.
    """

    name: str
    parameters: int
    weight_bytes: int
    largest_bytes: int
    dtype: str
    forward: Pass
    working: Line
    num_classes: int


@dataclass(frozen=True)
class HintProfile:
    """The counts of a student's hint: what it has beside the student.

    Attributes:
        parameters: of its heads; they learn as the student does, and have no averages.
        buffer_bytes: of its heads, without a bank.
        train: forward and backward of heads and loss.
        working: peak bytes of these, in addition to the features that they read.
        state_bytes: bytes of the optimizer's state of its heads.
        bank_bytes: bytes of CRD's bank; 0 without one, and where the number of images is unknown.
        bank_place: the memory of each process that holds the bank; None without one.
    """

    loss: str
    parameters: int
    buffer_bytes: int
    train: Pass
    working: Line
    state_bytes: int = 0
    bank_bytes: int = 0
    bank_place: Literal["device", "host"] | None = None

    @property
    def weight_bytes(self) -> int:
        return 4 * self.parameters


@dataclass(frozen=True)
class StudentProfile:
    """The counts of a student.

    Attributes:
        parameters: number of weights that learn; a weight and its gradient have four bytes each.
        buffer_bytes: bytes of running statistics and other state that is not a parameter.
        state_bytes: bytes of the optimizer's state.
        num_emas: number of float32 averages of weights and buffers.
        largest_bytes: bytes of the module with most weights.
        precision: "fp32", or the dtype of autocast.
        kept: bytes that the forward stores for the backward.
        working: peak bytes of forward and backward, in addition to weights, gradients and images.
        checkpointing: whether activations are computed again in the backward.
        can_checkpoint: whether that is possible: the model has no BatchNorm.
        elementwise: whether its optimizer updates each weight independently, as ZeRO needs.
        hint: what its hint adds to all of this; None without one.
    """

    name: str
    model: str
    parameters: int
    buffer_bytes: int
    state_bytes: int
    num_emas: int
    largest_bytes: int
    precision: str
    train: Pass
    kept: Line
    working: Line
    checkpointing: bool
    can_checkpoint: bool
    elementwise: bool
    hint: HintProfile | None = None

    @property
    def weight_bytes(self) -> int:
        """The bytes of its weights, without heads."""
        return 4 * self.parameters

    @property
    def trained_bytes(self) -> int:
        """The bytes of all that learns, heads included."""
        return self.weight_bytes + (self.hint.weight_bytes if self.hint else 0)

    @property
    def all_state_bytes(self) -> int:
        """The bytes of the optimizer's state, that of heads included."""
        return self.state_bytes + (self.hint.state_bytes if self.hint else 0)


@dataclass(frozen=True)
class Layout:
    """How a step is distributed over processes, one for each GPU.

    In each step a process does `num_forwards` forwards of `micro_batch` images.
    """

    num_processes: int
    micro_batch: int
    num_forwards: int = 1
    teacher_placement: str = "replicated"
    teacher_offload: bool = False
    zero_stage: int = 0
    zero_offload: bool = False

    @property
    def images_process(self) -> int:
        """Images per process and step."""
        return self.micro_batch * self.num_forwards

    @property
    def batch_size_global(self) -> int:
        return self.images_process * self.num_processes
