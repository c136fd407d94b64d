"""ImageNet's evaluation sets in miniature, and their scores by an independent loop with timm."""

import json
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from timm.models import save_for_hf

MODEL = "test_resnet"
SIZE = 32
PER_SET = 60
SYNSETS = ImageNetInfo("imagenet-1k").label_names()


def info(name: str) -> list[str]:
    content = pkgutil.get_data("timm.data", f"_info/{name}")
    assert content is not None
    return content.decode().split()


REAL: list[list[int]] = json.loads(pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json"))
OF_A, OF_R = ([int(i) for i in info(f"imagenet_{part}_indices.txt")] for part in "ar")


def export_model(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A random model of ImageNet's classes in timm's format, whose answers differ from image to
    image.
    """
    torch.manual_seed(seed)
    model = timm.create_model(MODEL, num_classes=1000)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 3)
        images = torch.randn(64, 3, SIZE, SIZE)
        model.get_classifier().bias -= model.eval()(images).mean(0)
    view = {"input_size": (3, SIZE, SIZE), "crop_pct": 0.875, "interpolation": "bicubic", **changes}
    model.pretrained_cfg = {**model.pretrained_cfg, "test_input_size": None, **view}
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


@dataclass
class Known:
    """Images of a set with the logits that timm finds for them."""

    paths: list[Path]
    logits: torch.Tensor  # [N, 1000] float64


def noise(number: int, folder: Path, seed: int) -> Iterator[Path]:
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(number):
        coarse = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC)
        path = folder / f"{i}.png"
        image.save(path)
        yield path


def answers(export: Path, paths: list[Path], size: int | None = None) -> torch.Tensor:
    """[N, 1000] float64 logits, each image alone, through timm's own transform."""
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    config = resolve_model_data_config(model, args={"img_size": size} if size else None)
    view = create_transform(**config)
    with torch.no_grad():
        rows = [model(view(Image.open(path).convert("RGB"))[None])[0] for path in paths]
    return torch.stack(rows).double()


def build(root: Path, export: Path) -> dict[str, Known]:
    """A val, imagenet-a, imagenetv2 and sketch folder below `root`, in which the model is right
    about some images. Files of val have the names of ImageNet's.
    """
    made = {}
    for seed, (name, folder, part) in enumerate(
        [
            ("val", "val", None),
            ("v2", "imagenetv2-matched-frequency-format-val", None),
            ("a", "imagenet-a", OF_A),
            ("sketch", "ImageNet-Sketch", None),
        ]
    ):
        raw = list(noise(PER_SET, root / f"raw-{name}", seed))
        logits = answers(export, raw)
        paths = []
        generator = np.random.default_rng(seed + 100)
        classes = np.arange(1000) if part is None else np.array(part)
        ranked = classes[logits[:, classes].argsort(1, descending=True).numpy()]
        in_a = np.array(OF_A)[logits[:, OF_A].argsort(1, descending=True).numpy()]
        # ReaL has no label for some images of val and other labels for many.
        numbers = generator.permutation(50_000)[:PER_SET]
        for i, path in enumerate(raw):
            place = [0, 0, 2, 7][i % 4]  # right, right, in the first five, wrong
            # Half of the clean images are of the classes of ImageNet-A.
            label = int((in_a if name == "val" and i % 8 > 3 else ranked)[i, place])
            if name == "val" and i % 3 < 2:  # ReaL's labels have the first answer, or the second
                with_answer = [n for n, labels in enumerate(REAL) if ranked[i, i % 3] in labels]
                numbers[i] = with_answer[i % len(with_answer)]
            file = f"ILSVRC2012_val_{numbers[i] + 1:08d}.png" if name == "val" else path.name
            class_name = str(label) if name == "v2" else SYNSETS[label]
            target = root / folder / class_name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            paths.append(target)
        (root / f"raw-{name}").rmdir()
        made[name] = Known(paths, logits)
    return made


def label_of(path: Path) -> int:
    return (
        int(path.parent.name) if path.parent.name.isdecimal() else SYNSETS.index(path.parent.name)
    )


def by_hand(
    known: Known, part: list[int] | None = None, real: bool = False
) -> dict[str, float | int | None]:
    """The scores of a set, counted image by image."""
    rows = []
    for path, logits in zip(known.paths, known.logits, strict=True):
        right = {label_of(path)}
        if real:
            right = set(REAL[int(path.stem.rpartition("_")[2]) - 1])
        allowed = list(range(1000)) if part is None else part
        if not right or (part is not None and not right <= set(part)):
            continue
        shares = logits[allowed].softmax(0)
        first = sorted(range(len(allowed)), key=lambda i, s=shares: -float(s[i]))[:5]
        named = [allowed[i] for i in first]
        loss = None if real else -math.log(shares[allowed.index(label_of(path))])
        rows.append((named[0] in right, bool(right & set(named)), float(shares[first[0]]), loss))
    count = len(rows)
    top1 = sum(row[0] for row in rows) / count
    bins: dict[int, list[float]] = {}
    for correct, _, confidence, _ in rows:
        bins.setdefault(math.ceil(confidence * 15), []).append(correct - confidence)
    return {
        "num_samples": count,
        "top1": 100 * top1,
        "top5": 100 * sum(row[1] for row in rows) / count,
        "top1_error": 100 * math.sqrt(top1 * (1 - top1) / count),
        "loss": None if real else sum(row[3] for row in rows) / count,
        "ece": sum(abs(sum(gaps)) for gaps in bins.values()) / count,
    }
