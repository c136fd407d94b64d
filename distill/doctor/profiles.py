"""What is counted of a model once, and used for any number of images: bytes, FLOPs, kernels. Plain
numbers, no torch.

One FLOP is one multiplication or one addition, so that a product of matrices [m, k] and [k, n] has
2 m k n.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A quantity that is linear in the images of a forward: `fixed + per_image * images`."""

    fixed: float = 0.0
    per_image: float = 0.0

    def at(self, images: float) -> float:
        return self.fixed + self.per_image * images


def through(small: float, large: float, num_small: int, num_large: int) -> Line:
    """The line through what was counted at two numbers of images. Never falling, and never below
    zero at none.
    """
    slope = max(0.0, (large - small) / (num_large - num_small))
    return Line(max(0.0, small - slope * num_small), slope)


@dataclass(frozen=True)
class Product:
    """One kernel that multiplies matrices (linear, convolution, attention): FLOPs, and bytes it
    reads and writes.
    """

    flops: Line
    traffic: Line


@dataclass(frozen=True)
class Pass:
    """One pass of a model over a micro-batch.

    Attributes:
        products: of one forward.
        times: how often the pass does the work of `products`: 1 for a forward, 3 with the backward
            (which makes two products of each), 4 when it computes the forward again (gradient
            checkpointing).
        other_bytes: memory traffic of all other kernels of the whole pass: each reads its inputs
            and writes its outputs once.
        num_kernels: that the whole pass launches, in eager mode.
    """

    products: tuple[Product, ...]
    times: int
    other_bytes: Line
    num_kernels: int

    def forward_flops(self, images: float) -> float:
        """FLOPs of one forward."""
        return sum(product.flops.at(images) for product in self.products)

    def flops(self, images: float) -> float:
        """FLOPs of the whole pass."""
        return self.times * self.forward_flops(images)


@dataclass(frozen=True)
class TeacherProfile:
    """A frozen model.

    Attributes:
        parameters: scalars.
        weight_bytes: weights and buffers in the dtype they are held in (BatchNorm stays float32).
        largest_bytes: of the one module that holds most weights itself: what ZeRO-3 gathers at
            once.
        dtype: "fp32", "bf16" or "fp16".
        working: peak bytes that a forward without gradients holds beyond weights and images.
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
class StudentProfile:
    """A model that learns.

    Attributes:
        parameters: scalars that learn; four bytes each as weights, and as gradients.
        buffer_bytes: running statistics and other state that is no parameter.
        state_bytes: the optimizer's state, counted after a step: 4 bytes a scalar and moment.
        num_emas: float32 averages of weights and buffers.
        largest_bytes: of the one module that holds most weights itself.
        precision: "fp32", or the dtype of autocast.
        kept: bytes that the forward leaves for the backward.
        working: peak bytes of forward and backward beyond weights, gradients and images: what is
            kept, what autocast casts, and the largest temporary.
        checkpointing: whether activations are computed again in the backward.
        can_checkpoint: whether they could be: the model has no BatchNorm.
        elementwise: whether its optimizer may be handed flat shards (ZeRO).
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

    @property
    def weight_bytes(self) -> int:
        return 4 * self.parameters


@dataclass(frozen=True)
class Layout:
    """How a step is spread over processes, one a GPU.

    A process makes `num_forwards` forwards of `micro_batch` images in each step. Placements are
    those of the recipe.
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
        """Images of a process and step."""
        return self.micro_batch * self.num_forwards

    @property
    def batch_size_global(self) -> int:
        return self.images_process * self.num_processes
