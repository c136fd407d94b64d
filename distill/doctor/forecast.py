"""Predicts memory and speed of a recipe on given GPUs, for each placement: tables, findings, and
the assumptions behind each number.
"""

from distill.doctor.counted import counted_models, hint_numbers
from distill.doctor.findings import Diagnosis, Grid, Section
from distill.doctor.hardware import SOURCE
from distill.doctor.machine import gib
from distill.doctor.memory import BATCH, FEATURES, GATHERED, RESERVE, TEACHER, WORKING, Memory
from distill.doctor.model import Step, gpu_hours
from distill.doctor.profiles import Layout
from distill.doctor.setting import Setting
from distill.errors import InputError

SCALES = (1, 8, 64, 512)


def forecast(diagnosis: Diagnosis, setting: Setting) -> None:
    """Adds sections to a diagnosis: counts of the models, memory of each placement, what limits the
    speed, and time for different numbers of GPUs.
    """
    try:
        own = setting.layout(setting.cluster.num_gpus)
    except InputError:  # the batch does not divide, which check_recipe reports
        return
    try:
        setting.step(own)
    except InputError as error:  # a dtype that the GPU lacks
        diagnosis.find(
            "problem",
            "precision",
            str(error),
            "train.precision and teacher.dtype, or another --gpu",
        )
        return
    diagnosis.sections.append(counted_models(setting, own))
    diagnosis.numbers["hints"] = {
        each.name: hint_numbers(each.hint, own.micro_batch)
        for each in setting.profiles.students
        if each.hint
    }
    diagnosis.sections.append(_fit(diagnosis, setting, own))
    diagnosis.sections.append(_pace(diagnosis, setting, own))
    diagnosis.sections.append(_assumptions(setting))


def _fit(diagnosis: Diagnosis, setting: Setting, own: Layout) -> Section:
    section = Section("Memory of a process")
    rows, plans = [], []
    for layout in setting.placements(own):
        memory, pace = setting.memory(layout), setting.step(layout)
        fits = memory.total <= setting.limit_bytes
        plans.append((layout, memory, pace, fits))
        rest = memory.lasting - memory.device.get(TEACHER, 0)
        rows.append(
            (
                _name(layout, setting) + (" *" if layout == own else ""),
                *(gib(memory.device.get(part, 0)) for part in (TEACHER, GATHERED)),
                gib(rest),
                gib(sum(memory.device.get(part, 0) for part in (WORKING, FEATURES, BATCH))),
                gib(memory.device[RESERVE]),
                gib(memory.total),
                "yes" if fits else "NO",
                gib(memory.host_total) if memory.host_total else "",
                f"{pace.images_s:,.0f}",
            )
        )
    note = (
        f"* of the recipe; {own.micro_batch} images a forward, {own.num_forwards} forwards a step;"
        f" limit {gib(setting.limit_bytes)} ({setting.sources['memory']}). ZeRO needs optimizers"
        " that update each weight independently: AdamW, SGD, Lion."
    )
    columns = (
        "placement",
        "teacher",
        "gathered",
        "students",
        "activations",
        "reserve",
        "total",
        "fits",
        "on host",
        "images/s",
    )
    section.tables.append(Grid(f"on {own.num_processes} processes", columns, tuple(rows), note))
    _find_fit(diagnosis, setting, own, plans)
    diagnosis.numbers["memory"] = [
        {
            "placement": _keys(layout),
            "device": memory.device,
            "host": memory.host,
            "total_bytes": memory.total,
            "fits": fits,
        }
        for layout, memory, _, fits in plans
    ]
    return section


def _find_fit(
    diagnosis: Diagnosis,
    setting: Setting,
    own: Layout,
    plans: list[tuple[Layout, Memory, Step, bool]],
) -> None:
    """Adds a finding: whether the placement of the recipe fits, and whether another is faster."""
    memory, pace = setting.memory(own), setting.step(own)
    fitting = [(layout, other) for layout, _, other, fits in plans if fits]
    best = max(fitting, key=lambda plan: plan[1].images_s, default=None)
    limit, label = setting.limit_bytes, setting.cluster.gpu.label
    if memory.total <= limit:
        diagnosis.find("ok", "memory", f"about {gib(memory.total)} of {gib(limit)} on {label}")
        if best is not None and best[1].images_s > 1.1 * pace.images_s:
            faster = best[1].images_s / pace.images_s - 1
            diagnosis.find(
                "warning",
                "placement",
                f"another placement fits and is about {faster:.0%} faster",
                _keys(best[0]),
            )
        return
    if best is not None:
        fix = _keys(best[0])
    else:
        smaller = "a smaller train.micro_batch_size" + (
            " (it changes the statistics of BatchNorm)" if own.micro_batch > 2 else ""
        )
        plain = any(
            student.can_checkpoint and not student.checkpointing
            for student in setting.profiles.students
        )
        fix = f"{smaller}, more processes" + (
            ", or student.grad_checkpointing=true" if plain else ""
        )
    if memory.lasting > limit:
        diagnosis.find(
            "problem",
            "memory",
            f"weights and optimizer alone are {gib(memory.lasting)}, and {label} has {gib(limit)}",
            fix,
        )
    else:
        diagnosis.find(
            "warning",
            "memory",
            f"about {gib(memory.total)} are needed, and {label} has {gib(limit)}",
            fix,
        )


def _pace(diagnosis: Diagnosis, setting: Setting, own: Layout) -> Section:
    section = Section("Predicted time of a step")
    pace = setting.step(own)
    parts = {
        "teacher forward": (pace.teacher_s, f"{pace.teacher_flops / 1e12:,.1f} TFLOP per process"),
        "gathering the teacher": (
            pace.gather_s,
            f"{pace.gather_bytes / 1e9:,.2f} GB received; the part that does not overlap",
        ),
        "students, forward and backward": (
            pace.student_s,
            f"{pace.student_flops / 1e12:,.1f} TFLOP per process",
        ),
        "synchronising gradients": (
            pace.sync_s,
            f"{pace.sync_bytes / 1e9:,.2f} GB sent; the part that does not overlap",
        ),
        "optimizer and averages": (pace.update_s, "memory traffic"),
        "or Python and launches": (pace.host_s, "in parallel with the GPU"),
        "or reading and decoding": (pace.data_s, "in parallel with the GPU"),
    }
    for part, (seconds, what) in parts.items():
        section.add(part, f"{seconds * 1e3:,.1f} ms", what)
    section.add(
        f"a step on {own.num_processes}",
        f"{pace.seconds * 1e3:,.1f} ms, {pace.images_s:,.0f} images/s, {pace.fraction_of_peak:.0%}"
        " of peak",
        f"{own.batch_size_global} images",
    )
    rows, numbers = [], []
    for count in sorted({*SCALES, own.num_processes}):
        try:
            there = setting.step(setting.layout(count))
        except InputError:
            rows.append((str(count), "", "", "", "", "", "batch does not divide"))
            continue
        steps = setting.total_steps
        hours = None if steps is None else gpu_hours(steps, there.seconds, count)
        rows.append(
            (
                str(count),
                f"{own.batch_size_global // count:,}",
                f"{there.seconds * 1e3:,.1f}",
                f"{there.images_s:,.0f}",
                "?" if hours is None else f"{hours:,.1f}",
                "?" if hours is None else f"{hours / count:,.1f}",
                there.bound,
            )
        )
        numbers.append(
            {
                "gpus": count,
                "step_s": there.seconds,
                "images_s": there.images_s,
                "gpu_hours": hours,
                "bound": there.bound,
            }
        )
    steps = setting.total_steps
    length = "an unknown number of steps" if steps is None else f"{steps:,} steps"
    section.tables.append(
        Grid(
            f"{setting.recipe.budgets}, {length}, on {setting.cluster.gpu.label}",
            ("GPUs", "images each", "ms per step", "images/s", "GPU hours", "hours", "bound"),
            tuple(rows),
            "Predicted, not measured; only training steps;"
            f" {setting.cluster.gpus_per_node} GPUs per node.",
        )
    )
    diagnosis.numbers["forecast"] = numbers
    diagnosis.numbers["step"] = {**vars(pace), "seconds": pace.seconds, "bound": pace.bound}
    _find_bound(diagnosis, setting, pace)
    return section


_FIXES = {
    "data": "more decoding processes (data.num_workers), more CPU cores per GPU, or a faster disk",
    "host": "train.compile=true, or more images per forward",
    "communication": "fewer nodes, a faster network, or a larger batch",
}


def _find_bound(diagnosis: Diagnosis, setting: Setting, pace: Step) -> None:
    says = (
        f"{pace.bound} limits the speed: about {pace.images_s:,.0f} images/s on"
        f" {setting.cluster.num_gpus} {setting.cluster.gpu.label}"
    )
    if pace.bound in _FIXES:
        ratio = pace.seconds / (pace.teacher_s + pace.student_s + pace.update_s)
        diagnosis.find(
            "warning",
            "speed",
            f"{says}, {ratio:.1f} x the time of the GPUs alone",
            _FIXES[pace.bound],
        )
    else:
        is_fp32 = (
            pace.bound == "teacher"
            and setting.profiles.teacher is not None
            and setting.profiles.teacher.dtype == "fp32"
        )
        fix = (
            "teacher.dtype=bf16 doubles its peak; measure first that it is exact enough"
            if is_fp32
            else ""
        )
        diagnosis.find("ok", "speed", says, fix)


def _assumptions(setting: Setting) -> Section:
    section = Section("Assumed")
    cluster, assumed, gpu, sources = (
        setting.cluster,
        setting.assumed,
        setting.cluster.gpu,
        setting.sources,
    )
    precision = setting.recipe.train.precision
    section.add(
        "GPU",
        f"{gpu.label}: {gpu.peak(precision) / 1e12:,.1f} TFLOP/s {precision},"
        f" {gpu.memory_bytes_s / 1e12:.2f} TB/s",
        SOURCE,
    )
    if assumed.mfu is None:
        section.add(
            "fraction of peak in products",
            f"{assumed.product_fraction}",
            "assumed, not measured",
        )
        section.add(
            "fraction of memory bandwidth elsewhere",
            f"{assumed.traffic_fraction}",
            "assumed, not measured",
        )
    else:
        section.add("fraction of peak", f"{assumed.mfu}", "--mfu")
    section.add(
        "in a node",
        f"{gpu.link_bytes_s / 1e9:,.0f} GB/s per GPU and direction ({gpu.link})",
        SOURCE,
    )
    section.add(
        "between nodes",
        f"{cluster.network_bytes_s / 1e9:,.0f} GB/s per node and direction",
        sources["network"],
    )
    section.add(
        "fraction of a link that collectives reach",
        f"{assumed.link_fraction}, and {assumed.hop_s * 1e6:.0f} us per hop",
        "assumed",
    )
    section.add("part of a pass that hides communication", f"{assumed.overlap}", "assumed")
    section.add(
        "Python and launch",
        f"{assumed.host_s_per_kernel * 1e6:.0f} us per kernel, eager mode",
        "assumed",
    )
    section.add(
        "decoding",
        f"{cluster.decode_images_s:,.0f} images/s a process, {cluster.decoders} processes a GPU",
        sources["decode"],
    )
    section.add("classes", f"{setting.num_classes:,}", sources["classes"])
    section.add("training images", setting.images_text, sources["images"])
    section.add(
        "reserve",
        f"{gib(setting.reserve.context_bytes)} for CUDA, NCCL and workspaces,"
        f" {setting.reserve.fragmentation:.0%} lost between blocks",
        "assumed",
    )
    return section


def _name(layout: Layout, setting: Setting) -> str:
    students = f"ZeRO-{layout.zero_stage}" if layout.zero_stage else "DDP"
    students += ", offloaded" if layout.zero_offload else ""
    if setting.profiles.teacher is None:
        return students
    return (
        f"{layout.teacher_placement}{', offloaded' if layout.teacher_offload else ''} + {students}"
    )


def _keys(layout: Layout) -> str:
    """The overrides that select a placement."""
    return f"teacher.placement={layout.teacher_placement} train.zero_stage={layout.zero_stage}"
