"""The model card: README.md with the Hub's metadata, made of what run and export recorded.

The same facts make the same card, so publishing again changes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from distill.errors import printable
from distill.models.hub.derived import teachers_of
from distill.models.hub.figures import OF_THE_RUN, Score
from distill.models.hub.licences import OTHER, Noted
from distill.models.hub.words import describe_recipe
from distill.models.origin import RANDOM
from distill.recipe import Recipe
from distill.recipe.hub_names import is_hub_name

CARD_FILE, LICENCE_FILE = "README.md", "LICENSE"
_CLASSES_SHOWN = 10
_PAPER = "https://arxiv.org/abs/2305.15781"
_CITATION = """```bibtex
@inproceedings{hao2023vanillakd,
  title = {Revisit the Power of Vanilla Knowledge Distillation: from Small Scale to Large Scale},
  author = {Hao, Zhiwei and Guo, Jianyuan and Han, Kai and Hu, Han and Xu, Chang and Wang, Yunhe},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}
```"""


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        licence: an id of the Hub; None while no one has chosen one.
        parameters: of the model.
        view: what it sees, by the names of timm: input_size, mean, std, crop_pct, interpolation.
        record: what the weights' distill.json says: scores, step, what they began with, teacher.
        student: its name in the recipe.
        noted: the licences of what the model derives from.
        weights_sha256: of model.safetensors.
        base_model: the model of the Hub that the student really began with; None for others.
        curves: the name of a picture in the repository.
        finished: False for a run that is still training.
    """

    repo: str
    architecture: str
    parameters: int
    classes: Sequence[str]
    num_classes: int
    view: Mapping[str, Any]
    record: Mapping[str, Any]
    weights_sha256: str
    licence: str | None
    noted: Sequence[Noted] = ()
    scores: Sequence[Score] = ()
    recipe: Recipe | None = None
    student: str | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    base_model: str | None = None
    datasets: Sequence[str] = ()
    curves: str | None = None
    finished: bool = True

    @property
    def task(self) -> str:
        """The task in the words of the Hub: a model without classes gives features."""
        return "image-classification" if self.num_classes else "image-feature-extraction"

    @property
    def teachers(self) -> list[Mapping[str, Any]]:
        """What is recorded of the weights of each teacher; empty if it learned from none."""
        return list(teachers_of(self.record, self.recipe, self.report).values())


def model_card(facts: CardFacts) -> str:
    """Return the content of README.md."""
    sections = [_title(facts), *_sections(facts)]
    return f"---\n{_metadata(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def has_text(card: str) -> bool:
    """Return whether a card has more than the Hub's metadata: a user wrote it."""
    lines = [line.strip() for line in card.strip().splitlines()]
    if lines[:1] == ["---"] and "---" in lines[1:]:
        lines = lines[lines.index("---", 1) + 1 :]
    return any(lines)


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    tags = [facts.task, "timm", "knowledge-distillation"]
    extra: dict[str, Any] = {}
    if facts.teachers:
        # Visible characters only: a line of three dashes would end the metadata.
        weights = [
            printable(_named(teacher["weights"]).removeprefix("pretrained "))
            for teacher in facts.teachers
        ]
        extra["teacher"] = weights[0] if len(weights) == 1 else weights
        names = dict.fromkeys(printable(teacher["model"]) for teacher in facts.teachers)
        tags += [f"distilled-from:{name}" for name in names]
    if facts.base_model:
        extra["base_model_relation"] = "finetune"
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=score.dataset,
            dataset_name=score.title,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(value, 4),
        )
        for score in facts.scores
        for name, value in (("Top-1 accuracy", score.top1), ("Top-5 accuracy", score.top5))
        if value is not None
    ]
    is_other = facts.licence == OTHER
    data = ModelCardData(
        library_name="timm",
        pipeline_tag=facts.task,
        license=facts.licence,
        license_name="see-license" if is_other else None,
        license_link="LICENSE" if is_other else None,
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        tags=tags,
        model_name=facts.repo.split("/")[1],
        eval_results=results or None,
        **extra,
    )
    return str(data.to_yaml())


def _title(facts: CardFacts) -> str:
    names = list(dict.fromkeys(_code(teacher["model"]) for teacher in facts.teachers))
    learned = f", distilled from {' and '.join(names)}" if names else ""
    named = facts.repo.split("/")[1]
    state = "" if facts.finished else "\n\n**This run is still training: the weights will change.**"
    size = f"{facts.parameters / 1e6:.2f} M parameters"
    kind = "A backbone for images, without classifier"
    if facts.num_classes:
        size, kind = f"{size}, {facts.num_classes:,} classes", "An image classifier"
    return f"# {named}\n\n{kind}: {_code(facts.architecture)} ({size}){learned}.{state}"


def _sections(facts: CardFacts) -> Iterator[str]:
    yield _use(facts)
    yield _evaluation(facts)
    yield _training(facts)
    yield _derived(facts)
    if facts.curves:
        yield f"## Curves\n\n![Training curves]({facts.curves})"
    yield _limits(facts)
    yield (
        "## Citation\n\nTrained with the recipe format and code of VanillaKD"
        f" ([paper]({_PAPER})):\n\n{_CITATION}"
    )


def _use(facts: CardFacts) -> str:
    own = facts.architecture.startswith("cifar_")
    first = "import distill.models, timm  # of the VanillaKD trainer" if own else "import timm"
    return (
        f"## Use\n\n```python\n{first}\n"
        f'model = timm.create_model("hf-hub:{facts.repo}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "```\n\n"
        f"It sees {_view(facts.view)}. {_classes(facts)}"
    )


def _view(view: Mapping[str, Any]) -> str:
    size = view["input_size"][-1]
    mean, std = (" ".join(f"{value:.4g}" for value in view[key]) for key in ("mean", "std"))
    return (
        f"{size} x {size} pixels (crop {view['crop_pct']:g}, {view['interpolation']}), with mean"
        f" {mean} and standard deviation {std}"
    )


def _classes(facts: CardFacts) -> str:
    if not facts.num_classes:
        return "It returns its pooled features."
    if not facts.classes:
        return "No record names its classes."
    shown = ", ".join(map(_code, facts.classes[:_CLASSES_SHOWN]))
    more = ", ..." if len(facts.classes) > _CLASSES_SHOWN else ""
    return f"Its classes, which `config.json` names in the order of the logits: {shown}{more}."


def _evaluation(facts: CardFacts) -> str:
    if not facts.scores:
        return "## Evaluation\n\nNot evaluated."
    rows = [
        "| images | number | top-1 % | top-5 % | cross-entropy | ECE | how they are seen |",
        "| -- | --: | --: | --: | --: | --: | -- |",
    ]
    for score in facts.scores:
        top1 = f"{score.top1:.2f}" + (f" ± {score.top1_error:.2f}" if score.top1_error else "")
        top5 = "" if score.top5 is None else f"{score.top5:.2f}"
        loss = "" if score.loss is None else f"{score.loss:.4f}"
        ece = "" if score.ece is None else f"{score.ece:.4f}"
        rows.append(
            f"| {_text(score.title)} | {score.num_samples:,} | {top1} | {top5} | {loss} | {ece} |"
            f" {_text(score.view) or 'as above'} |"
        )
    chosen = ""
    if any(score.dataset == OF_THE_RUN for score in facts.scores):
        chosen = (
            "\n\nThe weights were chosen by their score on the evaluation images of the run, which"
            " makes that score a little too good."
        )
    return "## Evaluation\n\n" + "\n".join(rows) + chosen


def _training(facts: CardFacts) -> str:
    lines = []
    if facts.recipe is not None and facts.student is not None:
        lines += [f"- {_text(each)}" for each in describe_recipe(facts.recipe, facts.student)]
        lines.append("- `recipe.yaml` has every number; `metrics.jsonl` is the log of the run.")
    data = facts.report.get("data")
    if isinstance(data, Mapping):
        images = [f"{part['images_used']:,}" for part in data.get("train", ())]
        lines.append(f"- Training images: {', then '.join(images)}.")
    if "step" in facts.record:
        which = {"raw": "the trained weights"}.get(
            str(facts.record.get("weights")), f"the average {facts.record.get('weights')}"
        )
        lines.append(f"- Published are {which} of step {facts.record['step']:,}.")
    if "device_hours" in facts.report:
        processes, device = facts.report["num_processes"], facts.report["device"]
        hours = facts.report["device_hours"]
        kind = "CPU process hours" if device == "cpu" else "GPU hours"
        lines.append(f"- {kind}: {hours:.2f} ({processes} x {_text(device)}).")
    versions = facts.report.get("versions")
    if isinstance(versions, Mapping):
        used = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"- Versions: {_text(used)}.")
    lines.append(f"- SHA-256 of `model.safetensors`: `{facts.weights_sha256}`.")
    return "## Training\n\n" + "\n".join(lines)


def _derived(facts: CardFacts) -> str:
    lines = []
    lines += [
        f"- Teacher: {_code(teacher['model'])}, weights {_code(_named(teacher['weights']))},"
        f" SHA-256 of its tensors `{teacher['sha256']}`."
        for teacher in facts.teachers
    ]
    began = facts.record.get("began_with")
    if began:
        lines.append(f"- The student began with {_text(_named(str(began)))}.")
    lines += [f"- Licence of {_text(each.describe())}." for each in facts.noted]
    chosen = (
        "No licence has been chosen for these weights yet."
        if facts.licence is None
        else f"These weights are under {_code(facts.licence)}; see `LICENSE`."
    )
    return "## Origin and licence\n\n" + "\n".join([*lines, f"- {chosen}"])


def _limits(facts: CardFacts) -> str:
    lines = [
        f"- It knows {facts.num_classes:,} classes and names one of them for any image.",
        "- It was evaluated on the images above alone; on others it can be much worse.",
    ]
    if not facts.num_classes:
        lines = ["- It names no classes, and nothing has evaluated its features."]
    if facts.teachers:
        taught = "teacher" if len(facts.teachers) == 1 else "teachers"
        lines.append(f"- Errors and biases of its {taught} and its training images are in it too.")
    if not facts.scores and facts.num_classes:
        lines.append("- No accuracy is known.")
    return "## Limits\n\n" + "\n".join(lines)


def _named(weights: str) -> str:
    """Weights without the folders of the machine."""
    if is_hub_name(weights) or weights == RANDOM or weights.startswith("pretrained "):
        return weights
    return PurePath(weights).name


def _code(text: str) -> str:
    """A name from outside as code: nothing in it is read as Markdown."""
    shown = printable(text).replace("`", "'")
    return f"`{shown}`"


def _text(text: str) -> str:
    """A text from outside, with the signs that Markdown and HTML would read escaped."""
    shown = printable(text)
    for sign in "\\`*_[]<>|#":
        shown = shown.replace(sign, f"\\{sign}")
    return shown
