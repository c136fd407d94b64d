"""The pairs of the step table: shipped recipes at the sizes of a real check, and of a rehearsal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.recipe import Recipe
from distill.recipe.load import find_recipe, read_tree
from distill.recipe.resolve import merge, resolve_students

NUM_CLASSES = 1000
STUDENT = "kd"


@dataclass(frozen=True)
class Pair:
    """A teacher and a student of a shipped recipe.

    Attributes:
        tiny: models of timm that a rehearsal takes instead.
        teacher: another teacher than the recipe's.
    """

    name: str
    recipe: str
    tiny: tuple[str, str]
    teacher: str | None = None


_LARGE = "beitv2_large_patch16_224"
PAIRS = (
    Pair("BEiTv2-L -> ResNet-50", "res50_beitv2l_a2_300ep", ("test_vit", "test_resnet")),
    Pair("BEiTv2-B -> ResNet-50", "res50_beitv2b_a2_300ep", ("test_vit", "test_resnet")),
    Pair("BEiTv2-B -> ViT-S", "vit_s_beitv2b_a2_300ep", ("test_vit", "test_vit")),
    Pair(
        "BEiTv2-B -> ConvNeXtV2-T", "convnextv2_t_beitv2b_a2_300ep", ("test_vit", "test_convnext")
    ),
    Pair("ResNet-34 -> ResNet-18", "res18_res34_b_300ep", ("test_resnet", "test_resnet")),
    Pair("BEiTv2-L -> ViT-S", "vit_s_beitv2b_a2_300ep", ("test_vit", "test_vit"), _LARGE),
    Pair(
        "BEiTv2-L -> ConvNeXtV2-T",
        "convnextv2_t_beitv2b_a2_300ep",
        ("test_vit", "test_convnext"),
        _LARGE,
    ),
)
LARGE, PAPER = PAIRS[:2]
"""The pairs whose 300 epochs of A2 are predicted in hours: the paper gives those of the first, and
the second has the teacher of most of its runs.
"""


@dataclass(frozen=True)
class Sizes:
    """How much a check measures.

    Attributes:
        matrix: side of the matrices whose product gives the peak.
        copied_bytes: of the copy that gives the memory bandwidth.
        num_photographs: different JPEGs; the other files of `num_files` are links to them.
        long_steps: steps from JPEGs under one clock.
        real_compiler: compile with torch's default compiler; else only trace, which takes no
            minutes on a CPU.
    """

    image_size: int
    batch_size: int
    rounds: int
    steps_per_round: int
    matrix: int
    copied_bytes: int
    num_photographs: int
    num_files: int
    long_steps: int
    num_workers: int | None
    real_compiler: bool


FULL = Sizes(
    image_size=224,
    batch_size=256,
    rounds=5,
    steps_per_round=3,
    matrix=8192,
    copied_bytes=4 * 2**30,
    num_photographs=200,
    num_files=4096,
    long_steps=64,
    num_workers=None,
    real_compiler=True,
)
REHEARSAL = Sizes(
    image_size=32,
    batch_size=8,
    rounds=2,
    steps_per_round=1,
    matrix=128,
    copied_bytes=2**20,
    num_photographs=4,
    num_files=NUM_CLASSES,
    long_steps=4,
    num_workers=1,
    real_compiler=False,
)


def sizes_of(rehearsal: bool) -> Sizes:
    return REHEARSAL if rehearsal else FULL


def pair_recipe(pair: Pair, sizes: Sizes, data: Path, output: Path, **own: Any) -> Recipe:
    """Return the recipe of a pair as it is shipped, but for: one student, random weights, a bf16
    teacher, one micro-batch a step, no drop path (of which each loop would draw its own), no
    warm-up, and a learning rate at which random labels do not diverge.

    Args:
        data: one folder a class.
        own: `compile`, and changes to `data`, by name.
    """
    tree = read_tree(find_recipe(f"imagenet1k/{pair.recipe}"))
    compile = own.pop("compile", False)
    changes: dict[str, Any] = {
        "output": str(output),
        "data": {
            "root": str(data),
            "train": {"kind": "image_folder", "path": "."},
            "eval": None,
            "image_size": sizes.image_size,
            "num_workers": sizes.num_workers,
            "mixing": {"group_size": sizes.batch_size},
            **own,
        },
        "teacher": {"weights": "random", "dtype": "bf16"},
        "student": {
            "drop_path": 0.0,
            "optimizer": {"lr": 1e-5},
            "schedule": {"name": "constant", "warmup": "0 epochs"},
        },
        "train": {
            "budget": "100000 iterations",
            "batch_size_global": sizes.batch_size,
            "micro_batch_size": sizes.batch_size,
            "precision": "bf16",
            "compile": compile,
        },
    }
    if pair.teacher:
        changes["teacher"]["model"] = pair.teacher
    if sizes is REHEARSAL:
        teacher, student = pair.tiny
        changes["teacher"] |= {"model": teacher, "image_size": sizes.image_size}
        changes["student"]["model"] = student
    tree = merge(tree, changes)
    tree["students"] = {STUDENT: tree["students"][STUDENT]}
    return Recipe.model_validate(resolve_students(tree))
