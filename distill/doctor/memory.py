"""The bytes that a process needs on its GPU and on the host with each placement: arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from distill.doctor.profiles import Layout, StudentProfile, TeacherProfile

# DeepSpeed 0.19.8's stage3_prefetch_bucket_size: scalars that ZeRO-3 gathers ahead of the layer
# that computes.
PREFETCH_SCALARS = 5e7
# The reduce_bucket_size of engine.zero (a test compares): a buffer that each engine allocates.
BUCKET_SCALARS = 5e7
_FLOAT32 = 4


@dataclass(frozen=True)
class Reserve:
    """Memory that is not in tensors; assumed, not measured.

    Attributes:
        context_bytes: CUDA context, libraries' workspaces, NCCL's buffers.
        fragmentation: fraction of all other memory that is lost between the allocator's blocks.
    """

    context_bytes: float = 2e9
    fragmentation: float = 0.05


@dataclass(frozen=True)
class Memory:
    """The bytes of one process on its GPU and on the host, by purpose. `lasting` bytes do not
    depend on the micro-batch.
    """

    device: dict[str, float]
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.device.values())

    @property
    def lasting(self) -> float:
        return sum(bytes_ for part, bytes_ in self.device.items() if part in LASTING)

    @property
    def host_total(self) -> float:
        return sum(self.host.values())


TEACHER, GATHERED, WEIGHTS, GRADIENTS = "teacher", "gathered layers", "weights", "gradients"
OPTIMIZER, COPY, BUCKET, EMA = "optimizer", "ZeRO copy", "ZeRO bucket", "averages"
BATCH, WORKING, RESERVE = "batch", "activations", "reserve"
BANK, FEATURES = "CRD's bank", "teacher's features"
LASTING = (TEACHER, WEIGHTS, GRADIENTS, OPTIMIZER, COPY, BUCKET, EMA, BANK)


def teacher_bytes(teacher: TeacherProfile, layout: Layout) -> tuple[float, float, float]:
    """The bytes of the teacher: (always on the device, gathered in its forward, on the host).

    Replicated: all on the device. ZeRO-3: a partition of 1/N on the device, or with offload on the
    host; the forward gathers the current layer and `PREFETCH_SCALARS` of the next ones.
    """
    if layout.teacher_placement == "replicated":
        return teacher.weight_bytes, 0.0, 0.0
    scalar = teacher.weight_bytes / teacher.parameters
    gathered = min(teacher.weight_bytes, teacher.largest_bytes + PREFETCH_SCALARS * scalar)
    partition = teacher.weight_bytes / layout.num_processes
    return (0.0, gathered, partition) if layout.teacher_offload else (partition, gathered, 0.0)


def student_bytes(
    student: StudentProfile, layout: Layout
) -> tuple[dict[str, float], dict[str, float]]:
    """The bytes of one student without activations: (on the device, on the host). With P float32
    weights, those of a hint's heads included (which have no average), and N processes:

    ================  =======  =======  =======  =======
    bytes             DDP      ZeRO-1   ZeRO-2   ZeRO-3
    ================  =======  =======  =======  =======
    weights           4P       4P       4P       4P/N
    gradients         4P       4P       4P/N     4P/N
    optimizer state   s        s/N      s/N      s/N
    partition copy    0        4P/N     4P/N     0
    an average        4P       4P/N     4P/N     4P/N
    bucket            0        b        b        b
    ================  =======  =======  =======  =======

    DeepSpeed makes the copy: stage_1_and_2.py clones the partition that it updates, for any dtype;
    stage3.py does not if weights are float32 and stay on the device. The bucket b is 4 min(P,
    `BUCKET_SCALARS`). Offload moves the optimizer state, the copy, partitioned gradients and, with
    ZeRO-3, the partition of the weights to the host. Buffers are not partitioned.
    """
    # A single process partitions nothing without offload.
    stage = layout.zero_stage if layout.num_processes > 1 or layout.zero_offload else 0
    parts, hint = layout.num_processes if stage else 1, student.hint
    partition = student.trained_bytes / parts
    weights = partition if stage == 3 else float(student.trained_bytes)
    gradients = partition if stage >= 2 else float(student.trained_bytes)
    state = student.all_state_bytes / parts
    buffers = student.buffer_bytes + (hint.buffer_bytes if hint else 0)
    copy = partition if stage in (1, 2) or (stage == 3 and layout.zero_offload) else 0.0
    device = {
        WEIGHTS: weights + buffers,
        BUCKET: min(4 * BUCKET_SCALARS, float(student.trained_bytes)) if stage else 0.0,
        EMA: student.num_emas * (student.weight_bytes / parts + student.buffer_bytes),
    }
    banks: dict[str, float] = {}
    if hint and hint.bank_place == "device":
        device[BANK] = hint.bank_bytes
    elif hint and hint.bank_place == "host":
        banks[BANK] = hint.bank_bytes
    if not layout.zero_offload:
        return device | {GRADIENTS: gradients, OPTIMIZER: state, COPY: copy}, banks
    host = banks | {OPTIMIZER: state, COPY: copy}
    if stage == 1:
        return device | {GRADIENTS: gradients}, host
    if stage == 3:
        device[WEIGHTS], host[WEIGHTS] = float(buffers), weights
    return device, host | {GRADIENTS: gradients}


def batch_bytes(micro_batch: int, image_size: int, num_classes: int) -> float:
    """The bytes of a micro-batch on the device and of the next one: float32 and uint8 pixels, label
    probabilities and teacher logits.
    """
    pixels = 3 * image_size**2
    return 2 * micro_batch * (pixels * (_FLOAT32 + 1) + 2 * num_classes * _FLOAT32)


def estimate(
    teacher: TeacherProfile | None,
    students: Sequence[StudentProfile],
    layout: Layout,
    *,
    image_size: int,
    num_classes: int,
    reserve: Reserve,
    feature_bytes: float = 0.0,
) -> Memory:
    """The peak bytes of one process.

    Lasting memory is summed over students. Teacher and students compute one after another, so only
    the largest activations and the largest gathered layers count.

    Args:
        feature_bytes: of the features of an image that hints read from teachers.
    """
    device: dict[str, float] = {}
    host: dict[str, float] = {}
    gathered, working = [0.0], [0.0]
    if teacher is not None:
        resident, ahead, offloaded = teacher_bytes(teacher, layout)
        device[TEACHER] = resident
        host[TEACHER] = offloaded
        gathered.append(ahead)
        working.append(teacher.working.at(layout.micro_batch))
    for student in students:
        own, away = student_bytes(student, layout)
        for parts, more in ((device, own), (host, away)):
            for part, size in more.items():
                parts[part] = parts.get(part, 0.0) + size
        of_hint = student.hint.working.at(layout.micro_batch) if student.hint else 0.0
        working.append(student.working.at(layout.micro_batch) + of_hint)
        if layout.zero_stage == 3:
            gathered.append(
                min(student.trained_bytes, student.largest_bytes + PREFETCH_SCALARS * _FLOAT32)
            )
    device[GATHERED] = max(gathered)
    device[BATCH] = batch_bytes(layout.micro_batch, image_size, num_classes)
    device[WORKING] = max(working)
    device[FEATURES] = feature_bytes * layout.micro_batch
    device[RESERVE] = reserve.context_bytes + reserve.fragmentation * sum(device.values())
    order = (
        TEACHER,
        GATHERED,
        WEIGHTS,
        GRADIENTS,
        OPTIMIZER,
        COPY,
        BUCKET,
        EMA,
        BANK,
        BATCH,
        FEATURES,
        WORKING,
        RESERVE,
    )
    return Memory(
        {part: device[part] for part in order if device.get(part)},
        {part: size for part, size in host.items() if size},
    )
