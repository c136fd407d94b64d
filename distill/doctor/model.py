"""Predicts the time of a step: arithmetic without torch, explained in docs/scaling.md.

Three things run in parallel, and the slowest determines the time:

    step = max(device, host, data)
    device = teacher + exposed gather + students + exposed all-reduce + update
    host = kernels * host_s_per_kernel                    (eager mode: Python launches every kernel)
    data = images per process / (decoding processes * images/s of a core)

The time of a pass on the device is a sum over its kernels: a product takes the larger of
FLOPs / (fraction * peak) and bytes / (fraction * bandwidth), any other kernel
bytes / (fraction * bandwidth).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.doctor.hardware import Gpu
from distill.doctor.profiles import Layout, Pass, StudentProfile, TeacherProfile

_DDP_BUCKET = 25 * 2**20  # bytes: torch's bucket_cap_mb


@dataclass(frozen=True)
class Assumptions:
    """Assumptions that were not measured. The first two fractions are low, since the paper's V100s
    took longer than higher fractions predict (docs/scaling.md compares them); the others are rules
    of thumb.

    Attributes:
        product_fraction: fraction of the data sheet's FLOP/s that large products reach.
        traffic_fraction: fraction of the data sheet's memory bandwidth that other kernels reach.
        mfu: if set, a pass takes FLOPs / (mfu * peak), and the two fractions are not used.
        link_fraction: fraction of a link's data-sheet rate that collectives reach.
        hop_s: latency in seconds of a message from one GPU to the next.
        overlap: fraction of a pass that can overlap with its communication.
        host_s_per_kernel: seconds for Python, autograd and launch, in eager mode.
    """

    product_fraction: float = 0.4
    traffic_fraction: float = 0.6
    mfu: float | None = None
    link_fraction: float = 0.8
    hop_s: float = 10e-6
    overlap: float = 0.8
    host_s_per_kernel: float = 30e-6


@dataclass(frozen=True)
class Cluster:
    """GPUs and their connections.

    Attributes:
        network_bytes_s: rate of one node to other nodes in one direction, over all its cards.
        decoders: decoding processes for each GPU.
        decode_images_s: images that a decoding process reads, decodes and augments in a second.
            Default: measured with `python -m benchmarks.loader --workers 0 --repeats 1 --clock cpu`
            on a core of an AMD EPYC (261.5; JPEGs of 103 kB, strategy A2).
    """

    gpu: Gpu
    num_gpus: int
    gpus_per_node: int = 8
    network_bytes_s: float = 50e9
    decoders: int = 16
    decode_images_s: float = 260.0

    @property
    def num_nodes(self) -> int:
        return math.ceil(self.num_gpus / self.gpus_per_node)

    @property
    def bandwidth(self) -> float:
        """Bytes/s of the slowest link in a ring over all GPUs: each GPU has a link in its node, and
        each node a link to other nodes.
        """
        link = self.gpu.link_bytes_s
        return min(link, self.network_bytes_s) if self.num_nodes > 1 else link


# ---- bytes on the wire ---------------------------------------------------------------------------


def all_reduce_bytes(size: float, num_processes: int) -> float:
    """Bytes that each process sends for an all-reduce of `size` bytes in a ring: 2 (N - 1) / N *
    size.
    """
    return 2 * (num_processes - 1) / num_processes * size


def gather_bytes(size: float, num_processes: int) -> float:
    """Bytes that each process receives for an all-gather (or sends for a reduce-scatter) of `size`
    bytes: (N - 1) / N * size.
    """
    return (num_processes - 1) / num_processes * size


def teacher_gather_bytes(teacher: TeacherProfile, layout: Layout) -> float:
    """Bytes that each process receives in a step for a teacher with ZeRO-3: all weights in each
    forward. Replicated: none.
    """
    if layout.teacher_placement == "replicated":
        return 0.0
    return layout.num_forwards * gather_bytes(teacher.weight_bytes, layout.num_processes)


def student_sync_bytes(student: StudentProfile, layout: Layout) -> float:
    """Bytes that each process sends or receives in a step for one student, in units of G = (N - 1)
    / N * 4P.

    DDP: 2 G (an all-reduce in each step). ZeRO-1: 2 G (reduce-scatter of gradients, all-gather of
    new weights). ZeRO-2: (k + 1) G (reduce-scatter in each of the k micro-batches). ZeRO-3: 3 k G
    (all-gather for forward and for backward, reduce-scatter of gradients).
    """
    unit = gather_bytes(student.trained_bytes, layout.num_processes)
    k = layout.num_forwards
    return {0: 2, 1: 2, 2: k + 1, 3: 3 * k}[layout.zero_stage] * unit


# ---- seconds -------------------------------------------------------------------------------------


def pass_seconds(work: Pass, images: float, gpu: Gpu, dtype: str, assumed: Assumptions) -> float:
    """Seconds of one pass over `images` on the device."""
    peak = gpu.peak(dtype)
    if assumed.mfu is not None:
        return work.flops(images) / (assumed.mfu * peak)
    bandwidth = assumed.traffic_fraction * gpu.memory_bytes_s
    rate = assumed.product_fraction * peak
    products = sum(
        max(p.flops.at(images) / rate, p.traffic.at(images) / bandwidth) for p in work.products
    )
    return work.times * products + work.other_bytes.at(images) / bandwidth


def wire_seconds(
    size: float, messages: int, cluster: Cluster, assumed: Assumptions, *, ways: int
) -> float:
    """Seconds of `size` bytes over the slowest link, plus the latency of `messages` that go up a
    tree of the GPUs (`ways` 1), or up and down (`ways` 2).
    """
    if cluster.num_gpus == 1:
        return 0.0
    hops = ways * math.ceil(math.log2(cluster.num_gpus))
    return size / (assumed.link_fraction * cluster.bandwidth) + messages * hops * assumed.hop_s


def exposed(wire_s: float, behind_s: float, pieces: int, assumed: Assumptions) -> float:
    """Seconds of a communication that do not overlap with computation; at least the last piece."""
    return max(wire_s - assumed.overlap * behind_s, wire_s / pieces)


@dataclass(frozen=True)
class Step:
    """The seconds of one step by purpose, and the images per second over all GPUs."""

    teacher_s: float
    gather_s: float
    student_s: float
    sync_s: float
    update_s: float
    host_s: float
    data_s: float
    images: int
    teacher_flops: float
    student_flops: float
    gather_bytes: float
    sync_bytes: float
    fraction_of_peak: float

    @property
    def device_s(self) -> float:
        return self.teacher_s + self.gather_s + self.student_s + self.sync_s + self.update_s

    @property
    def seconds(self) -> float:
        return max(self.device_s, self.host_s, self.data_s)

    @property
    def images_s(self) -> float:
        return self.images / self.seconds

    @property
    def bound(self) -> str:
        """What limits the speed: "data", "host", "teacher", "students" or "communication"."""
        if self.seconds == self.data_s:
            return "data"
        if self.seconds == self.host_s:
            return "host"
        parts = {
            "teacher": self.teacher_s,
            "students": self.student_s + self.update_s,
            "communication": self.gather_s + self.sync_s,
        }
        return max(parts, key=lambda part: parts[part])


def step(
    teacher: TeacherProfile | None,
    students: Sequence[StudentProfile],
    layout: Layout,
    cluster: Cluster,
    assumed: Assumptions,
) -> Step:
    """Predicts one optimizer step of all students with one teacher forward.

    Students compute one after another. The all-reduce of a student overlaps with its backward, two
    thirds of its pass; the gather of the teacher, with a message for each product, overlaps with
    its forward. The host time of DeepSpeed's hooks is not counted.
    """
    assert layout.num_processes == cluster.num_gpus
    gpu, k, b = cluster.gpu, layout.num_forwards, layout.micro_batch
    bandwidth = assumed.traffic_fraction * gpu.memory_bytes_s
    teacher_s = gather_s = gathered = teacher_flops = ideal_s = 0.0
    kernels = 0
    if teacher is not None:
        teacher_s = k * pass_seconds(teacher.forward, b, gpu, teacher.dtype, assumed)
        teacher_flops = k * teacher.forward.flops(b)
        ideal_s += teacher_flops / gpu.peak(teacher.dtype)
        kernels += k * teacher.forward.num_kernels
        gathered = teacher_gather_bytes(teacher, layout)
        if gathered:
            layers = len(teacher.forward.products)
            gather_s = exposed(
                wire_seconds(gathered, k * layers, cluster, assumed, ways=1),
                teacher_s,
                k * layers,
                assumed,
            )
    student_s = sync_s = synced = update_s = student_flops = 0.0
    for student in students:
        passes = [student.train, *([student.hint.train] if student.hint else [])]
        own_s = sum(k * pass_seconds(one, b, gpu, student.precision, assumed) for one in passes)
        flops = sum(k * one.flops(b) for one in passes)
        ideal_s += flops / gpu.peak(student.precision)
        size = student_sync_bytes(student, layout)
        buckets = max(1, math.ceil(student.trained_bytes / _DDP_BUCKET))
        sync_s += exposed(
            wire_seconds(size, buckets, cluster, assumed, ways=2), own_s * 2 / 3, buckets, assumed
        )
        updated = update_bytes(student, layout)
        update_s += updated / bandwidth
        kernels += sum(k * one.num_kernels for one in passes)
        student_s, student_flops, synced = student_s + own_s, student_flops + flops, synced + size
    seconds = Step(
        teacher_s=teacher_s,
        gather_s=gather_s,
        student_s=student_s,
        sync_s=sync_s,
        update_s=update_s,
        host_s=kernels * assumed.host_s_per_kernel,
        data_s=layout.images_process / (cluster.decoders * cluster.decode_images_s),
        images=layout.batch_size_global,
        teacher_flops=teacher_flops,
        student_flops=student_flops,
        gather_bytes=gathered,
        sync_bytes=synced,
        fraction_of_peak=0.0,
    )
    return Step(**{**vars(seconds), "fraction_of_peak": ideal_s / seconds.seconds})


def update_bytes(student: StudentProfile, layout: Layout) -> float:
    """Bytes of memory traffic of the optimizer and the averages in a step: weights and state are
    read and written, gradients are read.
    """
    share = layout.num_processes if layout.zero_stage else 1
    optimizer = (3 * student.trained_bytes + 2 * student.all_state_bytes) / share
    return optimizer + 3 * student.num_emas * student.weight_bytes


def gpu_hours(steps: int, step_s: float, num_gpus: int) -> float:
    """GPU hours of training steps, without start, evaluations and checkpoints."""
    return steps * step_s * num_gpus / 3600


def crossover_images(teacher: TeacherProfile, cluster: Cluster, assumed: Assumptions) -> int | None:
    """The smallest micro-batch for which the gather of the teacher overlaps completely with its
    forward, so that ZeRO-3 costs almost nothing; None if it is larger than 4,096 images.

    For a transformer with P weights of e bytes and T tokens per image, FLOPs are about 2 P T b, so
    that b is about e * fraction * peak / (2 T * overlap * link), independent of P.
    """
    size = gather_bytes(teacher.weight_bytes, cluster.num_gpus)
    wire_s = wire_seconds(size, len(teacher.forward.products), cluster, assumed, ways=1)
    for images in range(1, 4097):
        if (
            assumed.overlap
            * pass_seconds(teacher.forward, images, cluster.gpu, teacher.dtype, assumed)
            >= wire_s
        ):
            return images
    return None
