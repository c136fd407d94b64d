"""What a study file may not say: each mistake is one message, before any training."""

from pathlib import Path
from typing import Any

import pytest
from studies import write_study

from distill.errors import InputError
from distill.study.stored import plan_study, write_plan

LRS = {"student": ["kd"], "optimizer.lr": [0.05, 0.1]}
ROWS = {"rows": ["optimizer.lr"], "columns": ["student"]}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a key that no student has": (
        {"axes": {"optimzer.lr": [0.1]}},
        r"axes\.optimzer\.lr\[0\]: optimzer\.lr: neither a recipe nor a student has this key \(did"
        r" you mean 'optimizer'\?\)",
    ),
    "a key below one": (
        {"axes": {**LRS, "wd": {"a": {"optimizer.weight_decya": 0.1}}}},
        r"student kd, optimizer\.lr 0\.05, wd a: .*\n.*weight_decya: unknown key \(did you mean"
        r" 'weight_decay'",
    ),
    "a value of the wrong type": (
        {"axes": {**LRS, "train.budget": ["soon"]}},
        r"train\.budget soon: .*\n.*train\.budget: 'soon' is not a duration",
    ),
    "a key of the study": ({"axes": {"name": ["a"]}}, r"axes\.name\[0\]: name is not for an axis"),
    "an empty axis": ({"axes": {"seed": []}}, r"axes\.seed: should be a list of values, or a map"),
    "no axis": ({"axes": {}}, r"axes: .*at least 1"),
    "the same label": (
        {"axes": {"optimizer.lr": [0.1, 0.1]}},
        r"axes\.optimizer\.lr: two values have the label '0\.1'",
    ),
    "the same settings": (
        {"axes": {"student": ["kd"], "a": {"x": {"seed": 0}, "y": {"train.compile": False}}}},
        r"these two have the same settings: student kd, a x; and student kd, a y",
    ),
    "settings that are no mapping": (
        {"axes": {"a": {"x": 3}}},
        r"axes\.a\.x: should be a mapping of keys, .* not 3",
    ),
    "no student chosen": (
        {"axes": {"seed": [0]}},
        r"has the students alone, kd: choose one, with an axis student: \[alone, kd\]",
    ),
    "an unknown student": (
        {"axes": {"student": ["kd", "alonee"]}},
        r"has no student 'alonee' \(did you mean 'alone'\?\)",
    ),
    "no recipe": (
        {"axes": LRS, "recipe": "quickstart/studens"},
        r"recipe: no recipe 'quickstart/studens' \(did you mean 'quickstart/students'",
    ),
    "an unknown key": (
        {"axes": LRS, "tabel": {}},
        r"grid\.yaml:\n  tabel: unknown key \(did you mean 'table'\?\)",
    ),
    "an unknown key of the table": (
        {"axes": LRS, "table": {"row": ["student"]}},
        r"table\.row: unknown key \(did you mean 'rows'",
    ),
    "a row that names no axis": (
        {"axes": LRS, "table": {"rows": ["optimizer.rl"]}},
        r"table\.rows: no axis and no key of one is called 'optimizer\.rl' \(did you mean"
        r" 'optimizer\.lr'\?\)",
    ),
    "a dimension twice": (
        {"axes": LRS, "table": {"rows": ["student"], "columns": ["student"]}},
        r"table: 'student' is named twice",
    ),
    "an axis that is left out": (
        {"axes": {"student": ["alone", "kd"], "seed": [0, 1]}, "table": {"rows": ["seed"]}},
        r"the axis student is in neither rows nor columns, so that its cells would be averaged",
    ),
    "the best over what is not there": (
        {"axes": {**LRS, "seed": [0]}, "table": {**ROWS, "best": ["seed"]}},
        r"table\.best: 'seed' is in neither table\.rows nor table\.columns",
    ),
    "an unknown figure": (
        {"axes": LRS, "table": {**ROWS, "value": "top11"}},
        r"table\.value: no figure 'top11' \(did you mean 'top1'",
    ),
    "a gap to nothing": (
        {"axes": LRS, "table": {**ROWS, "gap": {"student": "k"}}},
        r"table\.gap: student has no value 'k'",
    ),
    "the paper's number of no row": (
        {"axes": LRS, "table": ROWS, "paper": {"0.2": [80.0]}},
        r"paper: no row '0\.2'.*; there are 0\.05, 0\.1",
    ),
    "the paper's numbers of no cell": (
        {
            "axes": {"student": ["alone", "kd"], "optimizer.lr": [0.05, 0.1]},
            "skip": [{"student": "alone", "optimizer.lr": 0.1}],
            "table": ROWS,
            "paper": {"0.05": [80.0, 81.0], "0.1": [82.0, 83.0]},
        },
        r"paper\.0\.1: the paper's 82 is of alone, a combination that the study does not have",
    ),
    "too few of the paper's numbers": (
        {"axes": LRS, "table": ROWS, "paper": {"0.05": [80.0, 81.0]}},
        r"paper\.0\.05: should be a list of 1 numbers, one for each column \(kd\), and has 2",
    ),
    "a word among the paper's numbers": (
        {"axes": LRS, "table": ROWS, "paper": {"0.05": ["eighty"]}},
        r"paper\.0\.05: 'eighty' is not a number",
    ),
    "the paper's number of no column": (
        {"axes": LRS, "table": ROWS, "paper": {"0.05": {"kdd": 80}}},
        r"paper\.0\.05: no column 'kdd' \(did you mean 'kd'",
    ),
    "a skip of nothing": (
        {"axes": LRS, "skip": [{"optimizer.lr": 0.2}]},
        r"skip\[0\]: optimizer\.lr has no value '0\.2'",
    ),
    "a skip of no axis": ({"axes": LRS, "skip": [{"lr": 0.1}]}, r"skip\[0\]: no axis .*'lr'"),
    "a skip of everything": (
        {"axes": LRS, "skip": [{"student": "kd"}]},
        r"skip leaves no combination out of 2",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_message(mistake: str, tmp_path: Path) -> None:
    study, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message):
        plan_study(str(write_study(tmp_path, study)))
    assert not (tmp_path / "out").exists()


def test_a_base_recipe_that_is_wrong_itself(tmp_path: Path) -> None:
    path = write_study(tmp_path, {"axes": LRS}, {"train": {"bugdet": "3 epochs"}})
    with pytest.raises(InputError, match=r"train\.bugdet: unknown key \(did you mean 'budget'"):
        plan_study(str(path))


def test_no_such_study() -> None:
    with pytest.raises(InputError, match=r"no study 'quickstar' \(did you mean 'quickstart'\?\)"):
        plan_study("quickstar")


def test_yaml_that_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match=r"a\.yaml: a study is a mapping of keys"):
        plan_study(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("axes: [")
    with pytest.raises(InputError, match=r"b\.yaml: not valid YAML"):
        plan_study(str(tmp_path / "b.yaml"))


def test_a_folder_of_another_study_or_of_something_else(tmp_path: Path) -> None:
    path = write_study(tmp_path, {"axes": LRS})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/photo.jpg").touch()
    with pytest.raises(InputError, match=r"out: is not the folder of a study, .*'photo\.jpg'"):
        plan_study(str(path))
    (tmp_path / "out/photo.jpg").unlink()
    write_plan(plan_study(str(path)))
    other = write_study(tmp_path, {"axes": LRS, "name": "other"})
    with pytest.raises(InputError, match=r"is the folder of the study 'grid', and this one is 'o"):
        plan_study(str(other))
    (tmp_path / "out/study.json").write_text("{")
    with pytest.raises(InputError, match=r"study\.json: damaged"):
        plan_study(str(other))


def test_two_axes_of_seeds(tmp_path: Path) -> None:
    axes = {"student": ["kd"], "seed": [0], "student.seed": [0]}
    with pytest.raises(InputError, match=r"--seeds: the axes seed and student\.seed are both"):
        plan_study(str(write_study(tmp_path, {"axes": axes})), num_seeds=2)
