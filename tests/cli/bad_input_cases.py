"""Wrong recipes and options: commands as a user types them, and text that messages must contain.

`test_bad_input` makes the files.
"""

from dataclasses import dataclass, field


@dataclass
class Case:
    """A command, and what its message must say. `environment` is set while it runs."""

    command: list[str]
    says: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def train(*overrides: str, recipe: str = "recipe.yaml") -> list[str]:
    """The command that trains into `out`."""
    return ["train", recipe, *overrides, "output=out"]


TEACHER = "teacher={model: cifar_resnet14, weights: random}"


# A case a line.
RECIPES = {
    "misspelt key": Case(
        train("train.buget='3 epochs'"), ["recipe.yaml", "train.buget: unknown key", "'budget'"]
    ),
    "misspelt inside": Case(
        train("students.one.optimiser.lr=1"), ["students.one.optimiser", "'optimizer'"]
    ),
    "misspelt in a kind": Case(
        train("data.train.pth=x"), ["data.train.pth: unknown key", "'path'"]
    ),
    "no key like it": Case(
        train("train.zzz=1"), ["train.zzz: unknown key", "known here: batch_size_global, budget"]
    ),
    "wrong type": Case(
        train("train.batch_size_global=many"),
        ["train.batch_size_global: should be a valid integer, not 'many'"],
    ),
    "no unit": Case(
        train("train.budget=300"), ["train.budget", "300 is not a duration", "'300 epochs'"]
    ),
    "negative": Case(
        train("student.optimizer.lr=-1"),
        ["students.one.optimizer.lr: should be greater than 0, not -1"],
    ),
    "unknown kind": Case(
        train("data.train.kind=imagefolder"),
        ["data.train.kind: no 'imagefolder'", "'image_folder'"],
    ),
    "unknown loss": Case(
        train("student.objective.hard.loss=bse"),
        ["students.one.objective.hard.loss", "it is one of ce, bce"],
    ),
    "no kind": Case(
        train("student.objective.soft={}", TEACHER), ["students.one.objective.soft.loss: missing"]
    ),
    "unknown precision": Case(
        train("train.precision=fp8"),
        ["train.precision: should be 'fp32', 'bf16' or 'fp16', not 'fp8'"],
    ),
    "scalar for mapping": Case(train("train=3"), ["train: should be a mapping of keys, not 3"]),
    "list for mapping": Case(
        train("data=[1, 2]"), ["data: should be a mapping of keys, not [1, 2]"]
    ),
    "scalar for list": Case(
        train("log.trackers=wandb"), ["log.trackers: should be a list, not 'wandb'"]
    ),
    "null data": Case(train("data.train=null"), ["data.train: should be a mapping of keys"]),
    "short list": Case(train("student.mean=[0.5]"), ["students.one.mean.1: missing"]),
    "no students": Case(
        train(recipe="no_students.yaml"), ["no_students.yaml", "students: should have at least 1"]
    ),
    "list of students": Case(
        train(recipe="list_students.yaml"), ["student and students should be mappings"]
    ),
    "student named teacher": Case(
        train("students.teacher={}"), ['the name "teacher" belongs to the teacher']
    ),
    "student's name": Case(
        train("students.a b={}"), ["students.a b: a name is letters, digits, - and _"]
    ),
    "soft without teacher": Case(
        train("student.objective.soft={loss: kl}"),
        ["teacher is null", "set objective.soft to null"],
    ),
    "nothing to learn": Case(
        train("student.objective.hard=null"), ["students.one.objective", "give objective.hard"]
    ),
    "LAMB with ZeRO": Case(
        train("student.optimizer.name=lamb", "train.zero_stage=2"),
        [
            "students.one.optimizer: lamb is not known to update each weight",
            "use zero_stage: 0, or one of adamw",
        ],
    ),
    "cautious Lion with ZeRO": Case(
        train(
            "student.optimizer={name: lion, lr: 1e-4, args: {caution: true}}", "train.zero_stage=1"
        ),
        ["students.one.optimizer.args.caution", "or use zero_stage: 0"],
    ),
    "scalars with ZeRO": Case(
        train("student.model=dm_nfnet_f0", "data.image_size=64", "train.zero_stage=1"),
        ["students.one.model dm_nfnet_f0", "single number", "skipinit_gain"],
    ),
    "fp16 with ZeRO": Case(
        train("train.precision=fp16", "train.zero_stage=1"),
        ["train: precision: fp16", "use bf16, or zero_stage: 0"],
    ),
    "compiled ZeRO": Case(
        train("train.compile=true", "train.zero_stage=1"),
        ["train: compile: true goes with zero_stage: 0"],
    ),
    "offload without ZeRO": Case(
        train("train.zero_offload=true"), ["train: zero_offload: true goes with zero_stage"]
    ),
    "teacher offload": Case(
        train("teacher={model: test_vit, weights: random, offload: true}"),
        ["teacher: offload: true goes with placement: zero3"],
    ),
    "teacher's size": Case(
        train("teacher={model: test_convnext, weights: random, image_size: 16}"),
        ["teacher", "image_size: test_convnext, random weights does not take images of 16 pixels"],
    ),
    "unknown placement": Case(
        train("teacher={model: test_vit, weights: random, placement: zero2}"),
        ["teacher.placement", "'replicated' or 'zero3'"],
    ),
    "checkpointing BatchNorm": Case(
        train("student.grad_checkpointing=true"),
        ["students.one: grad_checkpointing", "has BatchNorm", "set it to false"],
    ),
    "checkpointing unknown": Case(
        train("student.model=vgg11", "data.image_size=32", "student.grad_checkpointing=true"),
        ["students.one: grad_checkpointing: vgg11 has none in timm"],
    ),
    "micro-batch": Case(
        train("train.micro_batch_size=6"),
        ["micro_batch_size 6 does not divide batch_size_global 16"],
    ),
    "odd batch": Case(
        train("train.batch_size_global=17"),
        ["train.batch_size_global: should be a multiple of 2, not 17"],
    ),
    "override without value": Case(
        train("train.budget"), ["override 'train.budget': write key=value"]
    ),
    "override without key": Case(train("=3"), ["override '=3'"]),
    "override not YAML": Case(
        train("train.budget=[3"), ["override 'train.budget=[3'", "not valid YAML", "column 3"]
    ),
    "override of extends": Case(train("extends=x.yaml"), ["extends belongs in a recipe file"]),
    "no such recipe": Case(
        train(recipe="quickstart/student"),
        ["no recipe 'quickstart/student'", "'quickstart/students'", "distill recipe list"],
    ),
    "recipe is a folder": Case(
        train(recipe="nothing"), ["nothing: is a folder without recipe.yaml"]
    ),
    "YAML syntax": Case(
        train(recipe="syntax.yaml"), ["syntax.yaml: not valid YAML: line 2, column 4"]
    ),
    "YAML list": Case(
        train(recipe="list.yaml"),
        ["list.yaml: a recipe is a mapping of keys, and this file contains a list"],
    ),
    "empty file": Case(
        train(recipe="empty.yaml"),
        ["empty.yaml: a recipe is a mapping of keys, and this file contains nothing"],
    ),
    "not text": Case(train(recipe="noise.yaml"), ["noise.yaml: cannot be read"]),
    "key twice": Case(
        train(recipe="twice.yaml"), ["twice.yaml: not valid YAML: line 18", "'seed' is given twice"]
    ),
    "extends nothing": Case(
        train(recipe="extends_none.yaml"), ["extends 'nowhere.yaml'", "does not exist"]
    ),
    "extends a number": Case(
        train(recipe="extends_number.yaml"), ["extends should be a path or a list of paths, not 3"]
    ),
}
