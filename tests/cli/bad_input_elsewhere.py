"""Wrong data, models, machines and finished runs: commands, and text that messages must contain."""

from bad_input_cases import Case, train

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
    "no length": Case(
        train("train.budget='0 epochs'"), ["train.budget: 0 epochs", "longer than 0"]
    ),
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
        ["train.batch_size_global 16", "on 3 processes: start 1 or 2 or 4 or 8 processes"],
        {
            "WORLD_SIZE": "3",
            "RANK": "0",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "29511",
        },
    ),
    "no rendezvous": Case(
        train(),
        [
            "WORLD_SIZE=2, RANK=0 means a launch",
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
    "not evaluated yet": Case(["evaluate", "stopped_early"], ["no best weights", "--weights raw"]),
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
