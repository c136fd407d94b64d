"""The table of bad input: commands as a user types them, and what their messages must say.
`test_bad_input` lays out the files.
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
        train(recipe="list_students.yaml"), ["student and students are mappings"]
    ),
    "student named teacher": Case(train("students.teacher={}"), ['the name "teacher" is taken']),
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
    "recipe is a folder": Case(train(recipe="nothing"), ["nothing: a folder without recipe.yaml"]),
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

DATA = {
    "missing root": Case(
        train("data.root=gone"), ["data.train.path: gone/train does not exist", "data.root"]
    ),
    "misspelt path": Case(
        train("data.train.path=trian"),
        ["data.train.path: good/trian does not exist", "did you mean 'train'"],
    ),
    "empty class": Case(
        train("data.root=hole"),
        ["class folder hole/train/cow has no images", "fill it or remove it"],
    ),
    "no classes": Case(train("data.train.path=../nothing"), ["nothing has no class folders"]),
    "file for a folder": Case(train("data.train.path=../file"), ["file is not a folder"]),
    "other classes in eval": Case(
        train("data.eval.path=../other/val"), ["class 2 is", "'cow'", "'dog'", "data.eval.classes"]
    ),
    "class list missing": Case(
        train("data.train.classes=gone.txt"), ["data.train.classes: cannot read good/gone.txt"]
    ),
    "class list twice": Case(
        train("data.train.classes=../names.txt"), ["data.train.classes", "names 'ant' twice"]
    ),
    "bad table": Case(
        train("data.train={kind: parquet, path: ../junk.parquet}"),
        ["data.train.path", "junk.parquet as parquet"],
    ),
    "no table": Case(
        train("data.train={kind: parquet, path: ../gone.parquet}"),
        ["data.train.path", "gone.parquet does not exist"],
    ),
    "no IDX files": Case(
        train("data.train={kind: fashion_mnist, split: train, path: ../nothing}"),
        ["neither train-images-idx3-ubyte"],
    ),
    "batch over data": Case(
        train("train.batch_size_global=64"),
        ["train.batch_size_global is 64 and there are 48 training samples", "set it to 48 or less"],
    ),
    "no step": Case(
        train("train.budget='0.1 epochs'"), ["train.budget 0.1 epochs comes to no step at all"]
    ),
    "no length": Case(train("train.budget='0 epochs'"), ["train.budget: 0 epochs", "above 0"]),
    "warm-up over budget": Case(
        train("student.schedule.warmup='3 iterations'"),
        ["students.one.schedule.warmup", "lengthen train.budget"],
    ),
}

MODELS = {
    "unknown student": Case(
        train("student.model=resnet51"), ["students.one: timm", "no model 'resnet51'", "'resnet50'"]
    ),
    "unknown teacher": Case(
        train("teacher={model: cifar_resnet15, weights: random}"),
        ["teacher: timm", "no model 'cifar_resnet15'", "'cifar_resnet14'"],
    ),
    "unknown tag": Case(
        train("student.model=resnet50.a1_in2k"),
        ["students.one: resnet50 has no pretrained tag 'a1_in2k'", "'a1_in1k'"],
    ),
    "model's arguments": Case(
        train("student.model_args={foo: 1}"), ["students.one: model_args of cifar_resnet8", "'foo'"]
    ),
    "no drop path": Case(
        train("student.model=vgg11", "student.drop_path=0.1"),
        ["students.one: drop_path: vgg11", "set drop_path to 0"],
    ),
    "size too small": Case(
        train("student.model=vgg11"), ["students.one.model vgg11", "data.image_size 16"]
    ),
    "size between patches": Case(
        train("student.model=test_vit", "data.image_size=33"),
        ["students.one.model test_vit", "data.image_size 33"],
    ),
    "unknown optimizer": Case(
        train("student.optimizer.name=adamv"),
        ["students.one.optimizer.name", "no optimizer 'adamv'", "'adam'"],
    ),
    "optimizer's arguments": Case(
        train("student.optimizer.args={dampning: 1}"),
        ["students.one.optimizer.args.dampning", "'dampening'"],
    ),
    "unknown policy": Case(
        train("data.augment.auto_augment=rnd-m9"), ["data.augment.auto_augment", "'rnd-m9'"]
    ),
    "evil student": Case(
        train("student.weights=evil.pth"),
        ["students.one: evil.pth would run code", "mkdir", "safetensors"],
    ),
    "evil teacher": Case(
        train("teacher={model: cifar_resnet8, weights: evil.pth}"),
        ["teacher: evil.pth would run code"],
    ),
    "evil pickle": Case(train("student.weights=evil_plain.pth"), ["evil_plain.pth would run code"]),
    "junk weights": Case(train("student.weights=junk.pth"), ["students.one: junk.pth: damaged"]),
    "no weights": Case(train("student.weights=gone.pth"), ["students.one: gone.pth: no such file"]),
    "no network, teacher": Case(
        train("teacher={model: test_resnet, weights: pretrained}"),
        ["teacher: the pretrained weights of test_resnet could not be loaded", "HF_HOME"],
    ),
    "no network, student": Case(
        train("student={model: test_resnet, weights: pretrained}"),
        ["students.one: the pretrained weights of test_resnet", "safetensors"],
    ),
    "other classes in teacher": Case(
        train("teacher={weights: run}"), ["the teacher's head has 10 classes, the data 3"]
    ),
    "no teacher there": Case(
        train("teacher={weights: runn}"),
        ["teacher.weights: runn does not exist", "did you mean 'run'"],
    ),
    "teacher not finished": Case(
        train("teacher={weights: stopped_early}"),
        ["teacher.weights: stopped_early", "nor a finished run"],
    ),
    "teacher's student": Case(
        train("teacher={weights: run, student: knd}"), ["teacher.student", "'kd'", "alone, kd, vit"]
    ),
}

MACHINE = {
    "processes": Case(
        train(),
        ["train.batch_size_global 16", "on 3 processes: start 1 or 2 processes"],
        {"WORLD_SIZE": "3", "RANK": "0"},
    ),
    "no rendezvous": Case(
        train(),
        [
            "WORLD_SIZE=2, RANK=0 tells of a launch",
            "is missing: LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set",
            "torchrun",
        ],
        {"WORLD_SIZE": "2", "RANK": "0"},
    ),
    "no number of processes": Case(
        train(), ["WORLD_SIZE=two: should be the number of processes"], {"WORLD_SIZE": "two"}
    ),
    "tasks alone": Case(
        train(),
        ["srun started 8 processes of this command", "WORLD_SIZE is not set"],
        {"SLURM_STEP_NUM_TASKS": "8"},
    ),
    "launcher's ZeRO": Case(
        train(),
        ["ACCELERATE_USE_DEEPSPEED=true", "train.zero_stage is 0 in the recipe"],
        {"ACCELERATE_USE_DEEPSPEED": "true"},
    ),
    "launcher's device": Case(
        train(),
        ["ACCELERATE_TORCH_DEVICE=cuda:1", "CUDA_VISIBLE_DEVICES"],
        {"ACCELERATE_TORCH_DEVICE": "cuda:1"},
    ),
    "launcher's precision": Case(
        train(),
        ["ACCELERATE_MIXED_PRECISION=bf16", "train.precision"],
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
    ),
    "unknown tracker": Case(
        train("log.trackers=[wandbb]"), ["log.trackers: no tracker 'wandbb'", "'wandb'"]
    ),
    "tracker not installed": Case(
        train("log.trackers=[wandb]"),
        ["log.trackers: the package wandb is not installed", "pip install wandb"],
    ),
    "output is a file": Case(
        ["train", "recipe.yaml", "output=file"],
        ["file: is a file; choose another folder with output="],
    ),
    "output below a file": Case(
        ["train", "recipe.yaml", "output=file/x"],
        ["file/x: cannot be written: Not a directory", "output="],
    ),
    "another recipe": Case(
        ["train", "run", "students.kd.optimizer.lr=0.06"],
        [
            "is of another recipe",
            "students.kd.optimizer.lr: 0.05 -> 0.06",
            "output=",
            "resume=never",
        ],
    ),
    "damaged recipe in a run": Case(
        ["evaluate", "unreadable_run"], ["unreadable_run/recipe.yaml: not valid YAML: line 2"]
    ),
}

FINISHED = {
    "nothing there": Case(["evaluate", "gone"], ["gone: there is no such run"]),
    "no run": Case(["evaluate", "good"], ["good: neither a run (recipe.yaml), a checkpoint"]),
    "not judged yet": Case(["evaluate", "stopped_early"], ["no best weights", "--weights raw"]),
    "no checkpoint yet": Case(
        ["evaluate", "stopped_early", "--weights", "last"], ["this run has no checkpoint"]
    ),
    "no model named": Case(
        ["evaluate", "junk.pth"],
        ["junk.pth: a file of weights does not name its architecture", "--model"],
    ),
    "model for a run": Case(
        ["evaluate", "run", "--model", "resnet18"], ["--model", "run is a folder"]
    ),
    "evil weights": Case(
        ["evaluate", "evil.pth", "--model", "cifar_resnet8"], ["evil.pth would run code"]
    ),
    "junk": Case(["evaluate", "junk.pth", "--model", "cifar_resnet8"], ["junk.pth: damaged"]),
    "not weights": Case(
        ["evaluate", "file", "--model", "cifar_resnet8"],
        ["file: weights are read from .safetensors"],
    ),
    "unknown model": Case(
        ["evaluate", "junk.pth", "--model", "resnet51"], ["no model 'resnet51'", "'resnet50'"]
    ),
    "no such student": Case(
        ["evaluate", "run", "--student", "knd"], ["no student 'knd'", "'kd'", "alone, kd, vit"]
    ),
    "no such average": Case(
        ["evaluate", "run", "--weights", "ema-0.55"],
        ["no weights 'ema-0.55'", "'ema-0.5'", "best", "raw"],
    ),
    "weights of an export": Case(
        ["evaluate", "run/best/kd", "--weights", "last"],
        ["--weights last picks among what a run holds"],
    ),
    "student of an export": Case(
        ["evaluate", "run/best/kd", "--student", "kd"],
        ["--student kd picks among what a run holds"],
    ),
    "no data named": Case(
        ["evaluate", "run/best/kd"],
        ["run/best/kd does not say what to evaluate it on: give --data"],
    ),
    "no data there": Case(
        ["evaluate", "run", "--data", "gone"], ["--data gone: there is no such file or folder"]
    ),
    "no images": Case(
        ["evaluate", "run", "--data", "nothing"], ["--data: nothing has no class folders"]
    ),
    "other data": Case(
        ["evaluate", "run", "--data", "good/val"], ["alone's head has 10 classes, the data 3"]
    ),
    "classes without data": Case(
        ["evaluate", "run", "--classes", "imagenet-1k"], ["--classes names the classes of --data"]
    ),
    "unknown classes": Case(
        ["evaluate", "run", "--data", "good/val", "--classes", "imagenet-2k"],
        ["--classes imagenet-2k: neither a file nor a label set"],
    ),
    "class list": Case(
        ["evaluate", "run", "--data", "good/val", "--classes", "names.txt"],
        ["--classes: names.txt names 'ant' twice"],
    ),
    "damaged weights": Case(
        ["evaluate", "damaged", "--student", "kd"], ["best/kd/model.safetensors: damaged"]
    ),
    "damaged config": Case(
        ["evaluate", "damaged", "--student", "alone"],
        ["best/alone/config.json: not the config.json"],
    ),
    "damaged record": Case(
        ["evaluate", "damaged", "--student", "vit"], ["best/vit/distill.json: cannot be read"]
    ),
    "damaged checkpoint": Case(
        ["evaluate", "damaged", "--weights", "last"], ["kd.model.safetensors: damaged: 1000 bytes"]
    ),
    "export of nothing": Case(["export", "gone", "out"], ["gone: there is no such run"]),
    "export of a file": Case(
        ["export", "junk.pth", "out"], ["junk.pth: an export is made from a run or a checkpoint"]
    ),
    "export of no student": Case(
        ["export", "run", "out", "--student", "knd"], ["no student 'knd'", "'kd'"]
    ),
    "export of no average": Case(
        ["export", "run", "out", "--weights", "bst"], ["no weights 'bst'", "'best'"]
    ),
    "export, damaged report": Case(
        ["export", "damaged", "out"], ["damaged/report.json: damaged", "name the student"]
    ),
    "export over a file": Case(
        ["export", "run", "file"], ["file: is a file, and an export is a folder"]
    ),
    "export over a folder": Case(
        ["export", "run", "good"],
        ["good: holds 'train', which is no part of an export", "choose another folder"],
    ),
    "export below a file": Case(
        ["export", "run", "file/x"], ["file: is a file, and an export is a folder"]
    ),
}

ALL = RECIPES | DATA | MODELS | MACHINE | FINISHED
assert len(ALL) == sum(map(len, (RECIPES, DATA, MODELS, MACHINE, FINISHED)))
