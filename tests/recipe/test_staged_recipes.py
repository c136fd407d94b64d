"""The recipes with a stage on ImageNet-21K have the numbers of the paper."""

import re
from pathlib import Path

from paper_strategies import STRATEGIES, TABLE, settings
from shipped import (
    PAPER,
    STAGED,
    each_staged_recipe,
    load,
    name_of,
    opening,
)

# Table 14: method, thousands of iterations on ImageNet-21K and on ImageNet-1K, top-1.
TABLE_14 = {
    ("dkd", 0.0, 375.0, 81.68),
    ("dist", 0.0, 375.0, 81.88),
    ("kd", 0.0, 375.0, 81.64),
    ("kd", 0.0, 750.0, 82.35),
    ("kd", 0.0, 3000.0, 83.08),
    ("dkd", 187.5, 187.5, 81.21),
    ("dist", 187.5, 187.5, 81.20),
    ("kd", 187.5, 187.5, 81.29),
    ("kd", 187.5, 562.5, 81.98),
    ("kd", 750.0, 3000.0, 82.85),
}


def top1(path: Path) -> dict[str, float]:
    """What a recipe's comment expects of each student."""
    expected = opening(path).partition("# Expected:")[2].partition("# Measured:")[0]
    return {
        name: float(value)
        for name, value in re.findall(r"(?<![\w-])(\w+)\s+(\d\d\.\d\d)\b", expected)
    }


def test_every_row_of_table_14_is_a_student_of_a_recipe() -> None:
    """Rows on ImageNet-1K alone are those of Tables 8 and 9; nothing is written twice."""
    found = set()
    for path in PAPER + STAGED:
        recipe = load(path)
        claim = opening(path).partition("# Command:")[0]
        if "Table 14" not in claim or claim.startswith("# Ours"):
            continue
        assert recipe.teacher is not None
        assert recipe.teacher.model == "beitv2_base_patch16_224.in1k_ft_in22k_in1k"
        stages = [recipe.at_stage(index).train.budget for index in range(recipe.num_stages)]
        steps = [
            each.steps(steps_per_epoch=625, batch_size_global=2048) / 1000
            for each in stages
            if each
        ]
        on_21k, on_1k = steps if len(steps) == 2 else (0.0, *steps)
        for name, student in recipe.students.items():
            assert student.model == "resnet50"
            assert student.objective.soft is not None
            assert student.objective.soft.loss == {"kd": "kl"}.get(name, name)
            found.add((name, on_21k, on_1k, top1(path)[name]))
    # Table 9 has DKD and DIST after 1200 epochs as well, in the recipe of one of Table 14's rows.
    assert {
        row for row in found if row[:3] not in (("dkd", 0.0, 750.0), ("dist", 0.0, 750.0))
    } == TABLE_14


@each_staged_recipe
def test_staged_recipe_opens_with_its_claim(path: Path) -> None:
    recipe, comment = load(path), opening(path)
    assert recipe.name == name_of(path)
    assert recipe.description
    assert re.search(
        rf"^# Command: .* -m distill train recipes/{recipe.name}\.yaml$", comment, re.MULTILINE
    )
    assert "# Measured:  not run" in comment
    if re.match(r"# Table 14, ", comment):
        assert top1(path).keys() == recipe.students.keys()
    else:
        assert re.match(r"# Ours, beside Table 14's 187\.5K \+ 187\.5K: ", comment)
        assert "# Expected:  not known" in comment
    amounts = {"187p5k": 187_500, "562p5k": 562_500, "750k": 750_000, "3000k": 3_000_000}
    named = [amounts[part] for part in path.stem.split("_")[3:5]]
    budgets = [recipe.at_stage(index).train.budget for index in range(2)]
    assert [(each.amount, each.unit) for each in budgets if each] == [
        (amount, "iterations") for amount in named
    ]


@each_staged_recipe
def test_stage_1_learns_from_the_teacher_alone_and_stage_2_is_strategy_a1(path: Path) -> None:
    recipe = load(path)
    assert recipe.num_stages == 2
    table: dict[str, object] = {key: row[STRATEGIES.index("a1")] for key, row in TABLE.items()}
    table["warmup"] = "3125 iterations"  # 5 epochs of ImageNet-1K
    for index, stage in enumerate(recipe.stages):
        assert (stage.optimizer, stage.averages) == ("carry", "carry")
        seen = recipe.at_stage(index)
        for name, student in seen.students.items():
            assert student.schedule.over == "stage"
            assert student.objective.reads_labels is (index == 1), name
            hard = {"hard": None, "smoothing": None} if index == 0 else {}
            assert settings(seen, student) == table | hard, name
            assert student.objective.soft is not None
            assert student.objective.soft.weight == 1.0
    first, second = (recipe.at_stage(index).data for index in range(2))
    assert first.train.kind == "stream"
    assert (second.train.kind, second.keep_classes) == ("image_folder", "all")
    assert (first.keep_classes == "all") is not path.stem.endswith("_shared")
    assert first.train.labelled is path.stem.endswith("_shared"), (
        "labels are read only to choose by them"
    )


def test_the_confidence_filter_is_stage_1s_alone() -> None:
    recipe = load("imagenet21k/res50_beitv2b_a1_187p5k_187p5k_confident")
    thresholds = [
        {
            name: student.objective.soft.min_confidence
            for name, student in recipe.at_stage(index).students.items()
        }
        for index in range(2)
    ]
    assert thresholds[0] == {"kd": None, "sure0p1": 0.1, "sure0p3": 0.3, "sure0p5": 0.5}
    assert set(thresholds[1].values()) == {None}
