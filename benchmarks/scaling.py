"""The tables of docs/scaling.md: what a step counts, and what it takes on 1 to 512 GPUs.

Nothing is timed. FLOPs, bytes and kernels are counted from the real models, built without memory;
GPUs are those of their vendors' data sheets; what is assumed is printed. The arithmetic is
distill/doctor/model.py, that of `distill doctor`.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --write docs/scaling.md
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from distill.doctor.hardware import GPUS
from distill.doctor.measure import Profiles, measure
from distill.doctor.memory import TEACHER, Reserve, estimate
from distill.doctor.model import (
    Assumptions,
    Cluster,
    Step,
    crossover_images,
    gather_bytes,
    gpu_hours,
    pass_seconds,
    step,
    wire_seconds,
)
from distill.doctor.profiles import Layout
from distill.recipe import load_recipe

CLASSES = 1000
ASSUMED = Assumptions()
NUM_GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MICRO_BATCH = 256

# Pairs by shipped recipe; of several students the first.
PAIRS = {
    "BEiTv2-B -> ResNet-50": "imagenet1k/res50_beitv2b_a1_4800ep",
    "BEiTv2-L -> ResNet-50": "imagenet1k/res50_beitv2l_a2_300ep",
    "ConvNeXt-XL -> ResNet-50": "imagenet1k/res50_convnextxl_a2_300ep",
    "ResNet-152 -> ResNet-50": "imagenet1k/res50_res152_a2_300ep",
    "BEiTv2-B -> ViT-S": "imagenet1k/vit_s_beitv2b_a1_4800ep",
    "BEiTv2-B -> ConvNeXtV2-T": "imagenet1k/convnextv2_t_beitv2b_a2_300ep",
}


@cache
def profile(name: str, half: str = "bf16") -> Profiles:
    """A pair with teacher and student in half precision, one student. Both halves have the same
    bytes, FLOPs and kernels.
    """
    if half != "bf16":
        found = profile(name)
        assert found.teacher is not None
        students = tuple(dataclasses.replace(student, precision=half) for student in found.students)
        return Profiles(dataclasses.replace(found.teacher, dtype=half), students)
    found = measure(
        load_recipe(PAIRS[name], ["train.precision=bf16", "teacher.dtype=bf16"]), CLASSES
    )
    return dataclasses.replace(found, students=found.students[:1])


def one_step(pair: Profiles, cluster: Cluster, layout: Layout) -> Step:
    return step(pair.teacher, pair.students, layout, cluster, ASSUMED)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted(pairs: dict[str, Profiles]) -> str:
    """Return the counted numbers, which need no assumption."""
    rows = []
    seen = set()
    b = MICRO_BATCH
    for pair in pairs.values():
        teacher, student = pair.teacher, pair.students[0]
        assert teacher is not None
        if teacher.name not in seen:
            seen.add(teacher.name)
            forward = teacher.forward
            other = forward.other_bytes.per_image / 1e6
            rows.append(
                [
                    f"{teacher.name.partition('.')[0]}, forward",
                    f"{teacher.parameters / 1e6:.1f}",
                    f"{teacher.weight_bytes / 1e6:,.0f}",
                    f"{forward.flops(b) / b / 1e9:.1f}",
                    f"{other:,.0f}",
                    f"{teacher.working.per_image / 1e6:.1f}",
                    str(forward.num_kernels),
                ]
            )
        if student.model not in seen:
            seen.add(student.model)
            train = student.train
            other = train.other_bytes.per_image / 1e6
            rows.append(
                [
                    f"{student.model}, forward and backward",
                    f"{student.parameters / 1e6:.1f}",
                    f"{student.weight_bytes / 1e6:,.0f}",
                    f"{train.flops(b) / b / 1e9:.1f}",
                    f"{other:,.0f}",
                    f"{student.working.per_image / 1e6:.1f}",
                    str(train.num_kernels),
                ]
            )
    columns = (
        "model",
        "M parameters",
        "MB of weights",
        "GFLOP an image",
        "MB of other traffic an image",
        "MB held an image",
        "kernels",
    )
    return markdown(columns, rows)


def assumed() -> str:
    """Return every number that was assumed instead of counted."""
    cluster = Cluster(GPUS["h100"], 8)
    rows = [
        [
            "fraction of the data sheet's FLOP/s in products",
            f"{ASSUMED.product_fraction}",
            "assumed",
        ],
        [
            "fraction of the data sheet's memory bandwidth elsewhere",
            f"{ASSUMED.traffic_fraction}",
            "assumed",
        ],
        ["fraction of a link's rate that collectives reach", f"{ASSUMED.link_fraction}", "assumed"],
        ["a hop of a message", f"{ASSUMED.hop_s * 1e6:.0f} us", "assumed"],
        ["part of a pass that can hide communication", f"{ASSUMED.overlap}", "assumed"],
        [
            "Python and launch of a kernel, eager mode",
            f"{ASSUMED.host_s_per_kernel * 1e6:.0f} us",
            "assumed",
        ],
        [
            "between nodes, one direction",
            f"{cluster.network_bytes_s / 1e9:.0f} GB/s a node of 8",
            "assumed: one 400 Gb/s card",
        ],
        [
            "reading, decoding, augmenting",
            f"{cluster.decode_images_s:.0f} images/s a core",
            (
                "`python -m benchmarks.loader --workers 0 --repeats 1 --clock cpu`, an AMD EPYC"
                " core: 261.5"
            ),
        ],
        [
            "decoding processes",
            f"{cluster.decoders} a GPU",
            "assumed: what `data.num_workers: null` takes at most",
        ],
    ]
    for name in ("v100", "a100-80", "h100"):
        gpu = GPUS[name]
        half = "fp16" if name == "v100" else "bf16"
        rows.append(
            [
                gpu.label,
                (
                    f"{gpu.peak(half) / 1e12:,.0f} TFLOP/s {half}, {gpu.memory_bytes_s / 1e12:.2f}"
                    f" TB/s, {gpu.link_bytes_s / 1e9:.0f} GB/s a direction"
                ),
                "vendor data sheet, dense",
            ]
        )
    return markdown(("what", "value", "source"), rows)


def weak(pair: Profiles) -> str:
    """Return one step at 256 images a GPU, with the teacher replicated and partitioned."""
    rows = []
    base = 0.0
    for count in NUM_GPUS:
        cluster = Cluster(GPUS["h100"], count)
        whole = one_step(pair, cluster, Layout(count, MICRO_BATCH))
        sharded = one_step(pair, cluster, Layout(count, MICRO_BATCH, teacher_placement="zero3"))
        base = base or whole.images_s
        decoders = whole.images_s / count / cluster.decode_images_s
        rows.append(
            [
                str(count),
                f"{whole.teacher_s * 1e3:.1f}",
                f"{whole.student_s * 1e3:.1f}",
                f"{whole.sync_bytes / 1e6:,.0f}",
                f"{whole.sync_s * 1e3:.1f}",
                f"{sharded.gather_bytes / 1e6:,.0f}",
                f"{sharded.gather_s * 1e3:.1f}",
                f"{whole.seconds * 1e3:.1f}",
                f"{whole.images_s:,.0f}",
                f"{whole.images_s / count / base:.1%}",
                f"{sharded.images_s:,.0f}",
                f"{decoders:.1f}",
                f"{whole.images_s / count * 3 * 224**2 / 1e6:,.0f}",
            ]
        )
    columns = (
        "GPUs",
        "teacher, ms",
        "student, ms",
        "all-reduce, MB",
        "of it exposed, ms",
        "gather if zero3, MB",
        "of it exposed, ms",
        "step, ms",
        "images/s",
        "efficiency",
        "images/s if zero3",
        "decoding cores a GPU",
        "pixels to a GPU, MB/s",
    )
    return markdown(columns, rows)


_LINKS = {
    "8 in a node, NVLink": (8, "h100", 50e9),
    "8 in a node, PCIe 4": (8, "l40s", 50e9),
    "64, 50 GB/s a node": (64, "h100", 50e9),
    "64, 400 GB/s a node": (64, "h100", 400e9),
    "64, 12.5 GB/s a node": (64, "h100", 12.5e9),
}


def crossover(pairs: dict[str, Profiles]) -> str:
    """From how many images a forward hides the gather of its weights, and what zero3
    costs below.
    """
    rows = []
    for where, (count, gpu, network) in _LINKS.items():
        for name in ("BEiTv2-B -> ResNet-50", "BEiTv2-L -> ResNet-50", "ConvNeXt-XL -> ResNet-50"):
            teacher = pairs[name].teacher
            assert teacher is not None
            cluster = Cluster(GPUS[gpu], count, network_bytes_s=network)
            size = gather_bytes(teacher.weight_bytes, count)
            wire = wire_seconds(size, len(teacher.forward.products), cluster, ASSUMED, ways=1)
            forwards = [
                pass_seconds(teacher.forward, b, cluster.gpu, "bf16", ASSUMED) for b in (16, 256)
            ]
            first = crossover_images(teacher, cluster, ASSUMED)
            layouts = [
                Layout(count, 16, teacher_placement=placement)
                for placement in ("replicated", "zero3")
            ]
            slow, fast = (
                one_step(pairs[name], cluster, layout).device_s for layout in reversed(layouts)
            )
            rows.append(
                [
                    where,
                    teacher.name.partition(".")[0],
                    f"{size / 1e6:,.0f}",
                    f"{wire * 1e3:.1f}",
                    f"{forwards[0] * 1e3:.1f}",
                    f"{forwards[1] * 1e3:.1f}",
                    "over 4,096" if first is None else str(first),
                    f"{slow / fast - 1:+.0%}",
                    f"{saved(pairs[name], count):.2f}",
                ]
            )
    columns = (
        "GPUs and link",
        "teacher, bf16",
        "gathered, MB",
        "gather, ms",
        "forward of 16, ms",
        "forward of 256, ms",
        "hides from",
        "device time of a step of 16",
        "GB saved a GPU",
    )
    return markdown(columns, rows)


def saved(pair: Profiles, count: int) -> float:
    """Return the GB that partitioning the teacher frees on each GPU, less what a step gathers."""
    totals = []
    for placement in ("replicated", "zero3"):
        layout = Layout(count, 16, teacher_placement=placement)
        memory = estimate(
            pair.teacher,
            pair.students,
            layout,
            image_size=224,
            num_classes=CLASSES,
            reserve=Reserve(),
        )
        totals.append(memory.device[TEACHER] + memory.device.get("gathered layers", 0.0))
    return (totals[0] - totals[1]) / 1e9


# What the paper trained at batch 2048: steps of 4,800 epochs, and of its two-stage runs (Table 14).
# The 21K stage learns the 1K teacher's soft labels, so its step is that of the 1K stage.
RUNS = {
    "4,800 epochs on ImageNet-1K": 4800 * (1_281_167 // 2048),
    "21K -> 1K, 375K iterations": 375_000,
    "21K -> 1K, 750K iterations": 750_000,
    "21K -> 1K, 3,750K iterations": 3_750_000,
}


def runs() -> str:
    """Return the GPU hours of long runs of ResNet-50 from BEiTv2-B at batch 2048."""
    rows = []
    for name, half in (("v100", "fp16"), ("a100-80", "bf16"), ("h100", "bf16")):
        pair = profile("BEiTv2-B -> ResNet-50", half)
        for run, steps in RUNS.items():
            cells = [run, GPUS[name].label]
            for count in (8, 64, 512):
                there = one_step(pair, Cluster(GPUS[name], count), Layout(count, 2048 // count))
                hours = gpu_hours(steps, there.seconds, count)
                cells.append(f"{hours:,.0f} ({hours / count / 24:,.1f} d, {there.bound})")
            rows.append(cells)
    return markdown(("run", "GPU", "8 GPUs", "64 GPUs", "512 GPUs"), rows)


# Tables 3 and 10, 300 epochs at batch 2048 on 8 V100s: hours as printed.
PAPER = {
    "ResNet-152 -> ResNet-50": (264, "Table 3; it has one figure for this teacher and BEiTv2-L"),
    "BEiTv2-L -> ResNet-50": (264, "Table 3, the same figure"),
    "BEiTv2-B -> ConvNeXtV2-T": (653, "Table 10; it does not name the GPU"),
}


def paper() -> str:
    """Compare the model with the only hours that the paper prints."""
    rows = []
    for name, (printed, where) in PAPER.items():
        pair = profile(name, "fp16")
        there = one_step(pair, Cluster(GPUS["v100"], 8), Layout(8, MICRO_BATCH))
        hours = gpu_hours(300 * (1_281_167 // 2048), there.seconds, 8)
        rows.append([name, f"{hours:,.0f}", str(printed), f"{hours / printed:.2f}", where])
    return markdown(("300 epochs", "predicted, V100 hours", "paper", "ratio", "where"), rows)


def tables() -> dict[str, str]:
    """Return every table by its name in docs/scaling.md."""
    pairs = {name: profile(name) for name in PAIRS}
    return {
        "counted": counted(pairs),
        "assumed": assumed(),
        "weak": weak(pairs["BEiTv2-L -> ResNet-50"]),
        "crossover": crossover(pairs),
        "runs": runs(),
        "paper": paper(),
    }


def filled(text: str, found: dict[str, str]) -> str:
    """A document with each table in its place: between <!-- table NAME --> and <!-- end
    NAME -->.
    """
    for name, table in found.items():
        mark = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, places = mark.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
        assert places == 1, f"one place for the table {name}, not {places}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the tables into this document"
    )
    settings = parser.parse_args(arguments)
    found = tables()
    for name, table in found.items():
        print(f"{name}\n\n{table}\n")
    if settings.write:
        settings.write.write_text(filled(settings.write.read_text(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
