"""What a run is, what it cost and what computed it, as pairs of a word and a text."""

from collections.abc import Mapping
from typing import Any

from distill.recipe import schema
from distill.report import words
from distill.report.records import RunRecords, number

Facts = list[tuple[str, str]]


def status(run: RunRecords) -> str:
    """Return whether a run has ended, in a sentence."""
    if run.report is not None:
        epochs = "" if run.recipe.stages else f" ({run.report['epochs']:.1f} epochs)"
        device = f"{run.report['num_processes']} x {run.report['device']}"
        seconds = words.duration(number(run.report, "seconds"))
        return f"Finished: {run.step:,} steps{epochs} in {seconds} on {device}."
    epoch = "" if run.epoch is None else f", epoch {run.epoch:.2f}"
    last = "" if run.last_time is None else f" The last record is of {words.date(run.last_time)}."
    return (
        f"Unfinished: records up to step {run.step:,}{epoch}; the budget is"
        f" {run.recipe.budgets}.{last}"
    )


def what_was_trained(run: RunRecords) -> Facts:
    """Return data, teacher and how the students learn."""
    recipe = run.recipe
    data = run.report["data"] if run.report is not None else None
    facts: Facts = []
    if data is not None:
        facts += [
            (f"training data{_of_stage(each)}", _images(each, each["images_used"]))
            for each in data["train"]
        ]
        if data["eval"]:
            facts.append(("evaluation data", _images(data["eval"], data["eval"]["images"])))
        facts.append(("classes", f"{data['num_classes']:,}"))
    else:
        stages = [recipe.at_stage(i).data.train for i in range(recipe.num_stages)]
        facts.append(("training data", ", then ".join(dict.fromkeys(map(_source, stages)))))
        if recipe.data.eval is not None:
            facts.append(("evaluation data", _source(recipe.data.eval)))
    if recipe.teacher is not None:
        facts.append(("teacher", _teacher(recipe.teacher)))
    train = recipe.train
    facts += [
        ("budget", recipe.budgets),
        ("batch", f"{train.batch_size_global} images, {recipe.data.image_size} pixels"),
        ("precision", train.precision),
        ("best weights by", recipe.evaluate.metric),
    ]
    return facts


def costs(run: RunRecords) -> Facts:
    """Return time, energy and speed."""
    last = run.trained[-1] if run.trained else {}
    memory = max(
        (size for each in run.trained if (size := number(each, "memory_bytes"))), default=None
    )
    if run.report is not None:
        report = run.report
        speed = report["throughput"]
        waiting = 100 * speed["data_wait_seconds"] / max(speed["training_seconds"], 1e-9)
        return [
            ("wall time", words.duration(report["seconds"])),
            (_hours_label(report["device"]), words.hours(report["device_hours"])),
            ("energy of the GPUs", words.energy(number(report, "energy_j"))),
            ("mean speed", f"{speed['images_per_s']:,.0f} images/s"),
            ("waiting for data", f"{waiting:.1f} % of training time"),
            ("peak memory of a process", words.size(memory)),
            ("unreadable images skipped", f"{report['num_skipped']:,}"),
        ]
    saved, until = {}, ""
    if run.checkpoint is not None:
        saved, until = run.checkpoint.values, f" until step {run.checkpoint.state.step:,}"
    device_s = number(saved, "device_seconds")
    speed_now = number(last, "images_per_s")
    return [
        ("wall time", words.duration(number(last, "seconds"))),
        (f"device hours{until}", words.hours(None if device_s is None else device_s / 3600)),
        (f"energy of the GPUs{until}", words.energy(number(saved, "energy_j"))),
        ("speed now", words.NOT_KNOWN if speed_now is None else f"{speed_now:,.0f} images/s"),
        ("peak memory of a process", words.size(memory)),
    ]


def versions(run: RunRecords) -> Facts:
    """Return the versions of libraries, and the commit, that computed a run."""
    if run.report is not None:
        found: Mapping[str, Any] = run.report["versions"]
    else:
        found = run.checkpoint.manifest["versions"] if run.checkpoint is not None else {}
    return [(str(name), str(version)) for name, version in found.items()]


def warnings(run: RunRecords) -> list[str]:
    """Return the warnings of a run, and of its records."""
    if run.report is not None:
        found = run.report["warnings"]
    else:
        found = run.checkpoint.values.get("warnings", []) if run.checkpoint is not None else []
    damaged = (
        [f"{run.num_damaged} lines of metrics.jsonl are damaged and left out."]
        if run.num_damaged
        else []
    )
    return [*map(str, found), *damaged]


def _hours_label(device: str) -> str:
    return "device hours (CPU processes)" if device == "cpu" else "GPU hours"


def _of_stage(described: Mapping[str, Any]) -> str:
    return f" of stage {described['stage']}" if "stage" in described else ""


def _images(described: Mapping[str, Any], num_images: int) -> str:
    where = " ".join(str(described[key]) for key in ("kind", "split", "path") if described.get(key))
    return f"{num_images:,} images: {where}"


def _source(spec: schema.SourceSpec | schema.HoldOutSpec) -> str:
    keys = spec.model_dump(mode="json", exclude_none=True)
    if isinstance(spec, schema.HoldOutSpec):
        return "a part of the training images that training never sees"
    return " ".join(str(keys[key]) for key in ("kind", "split", "path") if keys.get(key))


def _teacher(spec: schema.TeacherSpec) -> str:
    student = f", student {spec.student}" if spec.student else ""
    model = spec.model or "the model"
    return f"{model} of {spec.weights}{student}, {spec.dtype}"
