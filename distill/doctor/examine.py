"""distill doctor: the examination of a machine and a recipe, step by step."""

import json
import os
import sys
from dataclasses import dataclass

import torch

from distill.doctor.findings import Diagnosis, Section
from distill.doctor.forecast import forecast
from distill.doctor.hardware import GPUS, Gpu, find_gpu, recognise
from distill.doctor.interconnect import Timing, measure_all_reduce, report_interconnect
from distill.doctor.machine import examine_machine
from distill.doctor.measure import Profiles, expected_classes, measure
from distill.doctor.memory import Reserve
from distill.doctor.model import Assumptions, Cluster
from distill.doctor.reach import Reached, examine_data, examine_space
from distill.doctor.setting import Setting
from distill.doctor.show import show
from distill.engine import Engine, launched_processes
from distill.errors import InputError
from distill.evaluation.sets import decoders
from distill.recipe import Recipe
from distill.training.check import check_recipe
from distill.training.share import Share, share_of_process

_MOST_WORKERS = 16  # what data.num_workers: null takes at most
# Number of classes -> number of training images, and the data set that most often has so many:
# ImageNet-1K, ImageNet-21K (the full set, and the winter release), CIFAR-100.
_KNOWN_SETS = {
    1000: (1_281_167, "ImageNet-1K"),
    21_843: (14_197_087, "ImageNet-21K"),
    21_841: (14_197_122, "ImageNet-21K"),
    100: (50_000, "CIFAR-100"),
}


@dataclass(frozen=True)
class Options:
    """The options of the command line; None: not given."""

    gpus: int | None = None
    nodes: int | None = None
    gpus_per_node: int = 8
    gpu: str | None = None
    network: float | None = None  # GB/s of a node, one direction
    decode: float | None = None  # images/s of a decoding process
    workers: int | None = None
    mfu: float | None = None
    images: int | None = None

    @property
    def num_gpus(self) -> int | None:
        """The number of GPUs. Raises InputError if --gpus and --nodes contradict each other."""
        if self.nodes is None:
            return self.gpus
        total = self.nodes * self.gpus_per_node
        if self.gpus is not None and self.gpus != total:
            raise InputError(
                f"--gpus {self.gpus}: {self.nodes} nodes of {self.gpus_per_node} have {total}:"
                " leave --gpus out, or give --gpus-per-node"
            )
        return total


def examine(recipe: Recipe | None, options: Options, *, as_json: bool = False) -> int:
    """Examines the machine and a recipe, and prints the result.

    Collective: every rank measures the interconnect; rank 0 does the rest alone.

    Returns:
        The exit code: 2 if something is certain to fail, else 0.
    """
    gpu = None if options.gpu is None else find_gpu(options.gpu)
    num_gpus = options.num_gpus
    diagnosis = Diagnosis()
    launched = launched_processes(dict(os.environ))
    timings, rank, backend = _measure_interconnect() if launched > 1 else ([], 0, "")
    if rank:
        return 0
    zero = recipe is not None and (
        recipe.train.zero_stage > 0
        or any(each.placement == "zero3" for each in recipe.live_teachers.values())
    )
    examine_machine(diagnosis, recipe, needs_deepspeed=zero)
    report_interconnect(diagnosis, timings, launched, backend)
    if recipe is not None:
        _examine_recipe(diagnosis, recipe, options, gpu, num_gpus, launched)
    if as_json:
        json.dump(_as_json(diagnosis), sys.stdout, indent=1)
        print()
    else:
        show(diagnosis)
    return diagnosis.exit_code


def predict_gpu_hours(recipe: Recipe, options: Options) -> float | None:
    """Returns the GPU hours of a recipe's training steps on the GPUs that the options name.

    Returns:
        None if the length of the run, or a model, is not known here.
    """
    assert options.gpu is not None
    assert options.num_gpus is not None
    diagnosis = Diagnosis()
    _examine_recipe(diagnosis, recipe, options, find_gpu(options.gpu), options.num_gpus, 1)
    for there in diagnosis.numbers.get("forecast", ()):
        if there["gpus"] == options.num_gpus:
            hours: float | None = there["gpu_hours"]
            return hours
    return None


def _measure_interconnect() -> tuple[list[Timing], int, str]:
    """Collective. Returns the timings of an all-reduce, the rank and the backend."""
    engine = Engine(precision="fp32", timeout_s=60)
    try:
        backend = str(torch.distributed.get_backend())
        return measure_all_reduce(engine), engine.rank, backend
    finally:
        engine.close()


def _examine_recipe(
    diagnosis: Diagnosis,
    recipe: Recipe,
    options: Options,
    gpu: Gpu | None,
    num_gpus: int | None,
    launched: int,
) -> None:
    sources = {}
    if num_gpus is None:
        num_gpus, sources["gpus"] = _processes(recipe, launched)
    else:
        sources["gpus"] = "--gpus or --nodes"
    section = Section("Recipe")
    section.add("name", recipe.name, recipe.description)
    diagnosis.sections.append(section)
    try:
        checked = check_recipe(recipe, num_gpus)
    except InputError as error:
        for line in str(error).splitlines():
            diagnosis.find("problem", "recipe", line)
    else:
        diagnosis.find("ok", "recipe", f"valid, and its batch divides on {num_gpus} processes")
        for line in checked.seen:
            diagnosis.find("ok", "pixels", line)
        for note in checked.not_here:
            if not note.startswith("data."):  # examine_data reports it
                diagnosis.find("unknown", "recipe", note)

    here = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    found = recognise(here)
    chosen = gpu or found or GPUS["h100"]
    sources["gpu"] = (
        "--gpu" if gpu else "of this machine" if found else "assumed; change it with --gpu"
    )
    is_here = found is not None and chosen is found
    limit = torch.cuda.get_device_properties(0).total_memory if is_here else chosen.memory_bytes
    sources["memory"] = "of this machine" if is_here else "vendor data sheet"
    section.add("on", f"{num_gpus} x {chosen.label}", f"{sources['gpus']}; {sources['gpu']}")

    reached = examine_data(diagnosis, recipe)
    num_classes, sources["classes"] = _classes(recipe, reached)
    num_images, sources["images"] = _images(recipe, reached, options, num_classes)
    try:
        profiles = measure(recipe, num_classes, _share(recipe, num_gpus), num_images)
    except InputError as error:
        diagnosis.find("problem", "models", str(error))
        return
    for sentence in profiles.unknown:
        diagnosis.find("unknown", "teacher", sentence)
    for student in profiles.students:
        if student.hint and student.hint.bank_place and not student.hint.bank_bytes:
            diagnosis.find(
                "unknown",
                "hint",
                f"students.{student.name}: CRD's bank is not in these numbers: the number of"
                " training images is unknown",
                "--images",
            )
    cluster = _cluster(recipe, reached, options, chosen, num_gpus, sources)
    setting = Setting(
        recipe=recipe,
        profiles=profiles,
        cluster=cluster,
        assumed=Assumptions(mfu=options.mfu),
        reserve=Reserve(),
        num_classes=num_classes,
        num_images=num_images,
        limit_bytes=limit,
        sources=sources,
    )
    _examine_space(diagnosis, setting, profiles)
    forecast(diagnosis, setting)


def _share(recipe: Recipe, num_processes: int) -> Share | None:
    """The share of a process; None if the batch does not divide."""
    train = recipe.train
    try:
        return share_of_process(train.batch_size_global, train.micro_batch_size, num_processes)
    except InputError:
        return None


def _processes(recipe: Recipe, launched: int) -> tuple[int, str]:
    if launched > 1:
        return launched, "from the launcher"
    if torch.cuda.is_available():
        return torch.cuda.device_count(), "of this machine"
    most = max((n for n in range(2, 9) if _share(recipe, n)), default=1)
    return most, "assumed, the most up to 8 that divide the batch; change it with --gpus"


def _classes(recipe: Recipe, reached: Reached) -> tuple[int, str]:
    if reached.num_classes is not None:
        return reached.num_classes, "from the data"
    expected = expected_classes(recipe)
    return (
        (expected, "from the teacher; the data is not available")
        if expected
        else (1000, "assumed; the data is not available")
    )


def _images(
    recipe: Recipe, reached: Reached, options: Options, num_classes: int
) -> tuple[tuple[int | None, ...], str]:
    """The number of training images of each stage, and the source of the number. An option or an
    assumption is about the data of the last stage.
    """
    stages = [recipe.at_stage(index).data for index in range(recipe.num_stages)]
    if options.images is not None:
        number, source = options.images, "--images"
    elif reached.num_images[-1] is not None:
        number, source = reached.num_images[-1], "from the data"
    elif num_classes in _KNOWN_SETS:
        number, name = _KNOWN_SETS[num_classes]
        source = f"assumed, as in {name}; change it with --images"
    else:
        number, source = None, "unknown, the data is not available; set it with --images"
    totals = [
        number if data.train == stages[-1].train else found
        for data, found in zip(stages, reached.num_images, strict=True)
    ]
    if any(data.fraction < 1 for data in stages):
        source += ", times data.fraction"
    numbers = tuple(
        None if n is None else int(n * data.fraction)
        for n, data in zip(totals, stages, strict=True)
    )
    return numbers, source


def _cluster(
    recipe: Recipe,
    reached: Reached,
    options: Options,
    gpu: Gpu,
    num_gpus: int,
    sources: dict[str, str],
) -> Cluster:
    default = Cluster(gpu, num_gpus, options.gpus_per_node)
    if options.decode is not None:
        decode, sources["decode"] = options.decode, "--decode"
    elif reached.images_s is not None:
        decode, sources["decode"] = reached.images_s, "measured"
    else:
        decode, sources["decode"] = (
            default.decode_images_s,
            "benchmarks.loader on a core of an AMD EPYC, 103 kB JPEGs; --decode",
        )
    if options.workers is not None:
        workers = options.workers
        sources["decode"] += "; --workers"
    elif recipe.data.num_workers is not None:
        workers = recipe.data.num_workers
        sources["decode"] += "; data.num_workers"
    elif torch.cuda.is_available():
        workers = decoders(None)
        sources["decode"] += "; cores of this machine"
    else:
        workers = _MOST_WORKERS
        sources["decode"] += f"; {_MOST_WORKERS} cores per GPU assumed, --workers"
    network = default.network_bytes_s if options.network is None else options.network * 1e9
    sources["network"] = (
        "assumed, one 400 Gb/s card; --network" if options.network is None else "--network"
    )
    return Cluster(gpu, num_gpus, options.gpus_per_node, network, max(1, workers), decode)


def _examine_space(diagnosis: Diagnosis, setting: Setting, profiles: Profiles) -> None:
    try:
        layout = setting.layout(setting.cluster.num_gpus)
    except InputError:  # found by check_recipe
        return
    examine_space(
        diagnosis,
        setting.recipe,
        profiles.students,
        layout=layout,
        workers=(
            decoders(setting.recipe.data.num_workers)
            if torch.cuda.is_available()
            else setting.cluster.decoders
        ),
        processes_node=min(setting.cluster.num_gpus, setting.cluster.gpus_per_node),
    )


def _as_json(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "findings": [finding.as_dict() for finding in diagnosis.findings],
        "exit_code": diagnosis.exit_code,
        "sections": {
            s.title: {what: {"value": value, "source": source} for what, value, source in s.rows}
            for s in diagnosis.sections
        },
        **diagnosis.numbers,
    }
