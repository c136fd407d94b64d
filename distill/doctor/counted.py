"""Shows the counts of the models of a recipe, and of its hints."""

from distill.doctor.findings import Section
from distill.doctor.machine import gib
from distill.doctor.profiles import HintProfile, Layout
from distill.doctor.setting import Setting
from distill.training.banks import shown_bytes


def counted_models(setting: Setting, layout: Layout) -> Section:
    """Returns the counts of teachers, students and hints."""
    section = Section("Models, counted")
    teacher, b = setting.profiles.teacher, layout.micro_batch
    if teacher is not None:
        gflops = teacher.forward.forward_flops(b) / b / 1e9
        section.add(
            "teacher",
            f"{teacher.name}: {teacher.parameters / 1e6:,.1f} M parameters,"
            f" {gib(teacher.weight_bytes)} in {teacher.dtype}; {gflops:,.1f} GFLOP per image",
            "forward",
        )
    of_stage = (
        f" (in stage {setting.profiles.of_stage}, which needs most)"
        if setting.profiles.of_stage
        else ""
    )
    same: dict[tuple[str, int, bool], list[str]] = {}
    for student in setting.profiles.students:
        same.setdefault((student.model, student.state_bytes, student.checkpointing), []).append(
            student.name
        )
    for student in setting.profiles.students:
        names = same[student.model, student.state_bytes, student.checkpointing]
        if names[0] != student.name:
            continue
        gflops = student.train.flops(b) / b / 1e9
        section.add(
            ", ".join(names),
            f"{student.model}: {student.parameters / 1e6:,.1f} M parameters, optimizer"
            f" {gib(student.state_bytes)}{of_stage}; {gflops:,.1f} GFLOP per image;"
            f" {student.kept.at(b) / b / 1e6:,.1f} MB of activations per image in"
            f" {student.precision}",
            f"forward and backward, {student.train.times} x the forward",
        )
    hints: dict[HintProfile, list[str]] = {}
    for student in setting.profiles.students:
        if student.hint:
            hints.setdefault(student.hint, []).append(student.name)
    for hint, names in hints.items():
        section.add(
            f"hint of {', '.join(names)}",
            f"{hint.loss}: {_counted(hint, b)}{_bank(hint)}{of_stage}",
            f"heads and loss, counted at {b} images a forward",
        )
    if setting.profiles.feature_bytes:
        section.add(
            "features of teachers",
            f"{setting.profiles.feature_bytes / 1e6:,.3f} MB per image",
            "those that hints read",
        )
    return section


def hint_numbers(hint: HintProfile, images: int) -> dict[str, object]:
    """Returns the counts of a hint for programs."""
    return {
        "loss": hint.loss,
        "parameters": hint.parameters,
        "flops_per_image": hint.train.flops(images) / images,
        "working_bytes": hint.working.at(images),
        "bank_bytes": hint.bank_bytes,
        "bank_place": hint.bank_place,
    }


def _counted(hint: HintProfile, images: int) -> str:
    heads = (
        f"{hint.parameters / 1e6:,.2f} M parameters in heads, optimizer {gib(hint.state_bytes)}"
        if hint.parameters
        else "trains nothing"
    )
    return (
        f"{heads}; {hint.train.flops(images) / images / 1e9:,.3f} GFLOP and"
        f" {hint.working.at(images) / images / 1e6:,.2f} MB of activations per image"
    )


def _bank(hint: HintProfile) -> str:
    if hint.bank_place is None:
        return ""
    size = shown_bytes(hint.bank_bytes) if hint.bank_bytes else "of unknown size"
    return f"; bank {size} on the {hint.bank_place} of each process"
