"""What a run is, what it cost and what computed it, as pairs of a word and a text."""

from collections.abc import Mapping
from typing import Any

from distill.recipe import schema
from distill.report import words
from distill.report.records import RunRecords, number
from distill.training.result_file import Images, Throughput, finite

Facts = list[tuple[str, str]]


def status(run: RunRecords) -> str:
    """Return whether a run has ended, in a sentence."""
    if run.result is not None:
        result, text = run.result, f"Finished: {run.step:,} steps"
        if result.epochs is not None and not run.recipe.stages:
            text += f" ({result.epochs:.1f} epochs)"
        if result.seconds is not None:
            text += f" in {words.duration(result.seconds)}"
        if result.device is not None:
            count = "" if result.num_processes is None else f"{result.num_processes} x "
            text += f" on {count}{result.device}"
        return f"{text}."
    epoch = "" if run.epoch is None else f", epoch {run.epoch:.2f}"
    last = "" if run.last_time is None else f" The last record is of {words.date(run.last_time)}."
    return (
        f"Unfinished: records up to step {run.step:,}{epoch}; the budget is"
        f" {run.recipe.budgets}.{last}"
    )


def what_was_trained(run: RunRecords) -> Facts:
    """Return data, teacher and how the students learn."""
    recipe = run.recipe
    data = run.result.data if run.result is not None else None
    facts: Facts = []
    if data is not None and data.train is not None:
        facts += [
            (f"training data{_of_stage(each)}", _images(each, each.images_used))
            for each in data.train
        ]
        if data.eval is not None:
            facts.append(("evaluation data", _images(data.eval, data.eval.images)))
        facts.append(("classes", words.recorded(data.num_classes, _count)))
    else:
        stages = [recipe.at_stage(i).data.train for i in range(recipe.num_stages)]
        facts.append(("training data", ", then ".join(dict.fromkeys(map(_source, stages)))))
        if recipe.data.eval is not None:
            facts.append(("evaluation data", _source(recipe.data.eval)))
    facts += [(row, _teacher(spec)) for row, spec in recipe.teacher_rows.items()]
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
    if run.result is not None:
        result = run.result
        speed = result.throughput or Throughput()
        return [
            ("wall time", words.recorded(result.seconds, words.duration)),
            (_hours_label(result.device), words.recorded(result.device_hours, words.hours)),
            ("energy of the GPUs", words.energy(result.energy_j)),
            ("mean speed", words.recorded(speed.images_per_s, _images_per_s)),
            ("waiting for data", words.recorded(_waiting(speed), _of_training)),
            ("peak memory of a process", words.size(memory)),
            ("unreadable images skipped", words.recorded(result.num_skipped, _count)),
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
    if run.result is not None:
        found: Any = run.result.versions
        if found is None:
            return [("versions", words.NOT_RECORDED)]
    else:
        found = run.checkpoint.manifest.get("versions") if run.checkpoint is not None else None
    if not isinstance(found, Mapping):
        return []
    return [(str(name), str(version)) for name, version in found.items()]


def warnings(run: RunRecords) -> list[str]:
    """Return the warnings of a run, and of its records."""
    if run.result is not None:
        found: Any = run.result.warnings
    else:
        found = run.checkpoint.values.get("warnings") if run.checkpoint is not None else None
    warned = [*map(str, found)] if isinstance(found, list) else []
    if run.num_damaged:
        warned.append(f"{run.num_damaged} lines of metrics.jsonl are damaged and left out.")
    if lost := run.num_lost_steps:
        warned.append(
            f"metrics.jsonl ends at step {run.step - lost:,} of {run.step:,}: its last records are"
            " missing, and so are the ends of the curves."
        )
    if run.result is not None and (missing := run.result.missing):
        warned.append(f"report.json does not contain {', '.join(missing)}, or not in a known form.")
    return warned


def _waiting(speed: Throughput) -> float | None:
    """Return the percentage of training time in which training waited for data."""
    if speed.data_wait_seconds is None or speed.training_seconds is None:
        return None
    return finite(100 * speed.data_wait_seconds / max(speed.training_seconds, 1e-9))


def _count(number: int) -> str:
    return f"{number:,}"


def _images_per_s(speed: float) -> str:
    return f"{speed:,.0f} images/s"


def _of_training(percent: float) -> str:
    return f"{percent:.1f} % of training time"


def _hours_label(device: str | None) -> str:
    if device is None:
        return "device hours"
    return "device hours (CPU processes)" if device == "cpu" else "GPU hours"


def _of_stage(described: Images) -> str:
    return f" of stage {described.stage}" if described.stage is not None else ""


def _images(described: Images, num_images: int | None) -> str:
    where = " ".join(filter(None, (described.kind, described.split, described.path)))
    count = "number not recorded" if num_images is None else f"{num_images:,} images"
    return f"{count}: {where}" if where else count


def _source(spec: schema.SourceSpec | schema.HoldOutSpec) -> str:
    keys = spec.model_dump(mode="json", exclude_none=True)
    if isinstance(spec, schema.HoldOutSpec):
        return "a part of the training images that training never sees"
    return " ".join(str(keys[key]) for key in ("kind", "split", "path") if keys.get(key))


def _teacher(spec: schema.TeacherSpec) -> str:
    student = f", student {spec.student}" if spec.student else ""
    model = spec.model or "the model"
    return f"{model} of {spec.weights}{student}, {spec.dtype}"
