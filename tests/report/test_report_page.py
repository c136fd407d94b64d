"""The two files: nothing from outside, names as text, several runs, a run that is training."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
from hostile import HOSTILE_CLASSES, HOSTILE_DESCRIPTION, HOSTILE_NAME
from markdown_it import MarkdownIt
from tables import Page

from distill.errors import InputError, printable
from distill.report.content import Options
from distill.report.render import markdown_text
from distill.report.words import energy, sparkline
from distill.report.write import write_report

QUICK = Options(predictions=False)


@pytest.fixture(scope="module")
def files(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_report([hostile_run], tmp_path_factory.mktemp("page"))


def test_the_page_refers_to_nothing_outside(files: tuple[Path, Path]) -> None:
    page = Page(files[0])
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), value
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert re.findall(r"url\((?!#)", page.html) == []
    policies = [each.get("content") for _, each in page.tags if "http-equiv" in each]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_ids_that_are_named_are_there_and_unique(files: tuple[Path, Path]) -> None:
    page = Page(files[0])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    named = set(re.findall(r"url\(#(\w+)\)|href=\"#(\w+)\"", page.html))
    assert {a or b for a, b in named} <= set(ids)
    assert len(ids) == len(set(ids))


def test_markdown_shows_hostile_names_as_text(files: tuple[Path, Path]) -> None:
    source = files[1].read_text()
    html = MarkdownIt("gfm-like", {"linkify": False}).render(source)
    text = re.sub(r"<[^>]*>", " ", html)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, character)
    for name in (HOSTILE_NAME, HOSTILE_DESCRIPTION, *HOSTILE_CLASSES):
        assert printable(name) in text, name
    assert not re.search(r"<(script|img|b|i|em|strong|a|del)\b", html)
    assert html.count("<table>") >= 8
    rows = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    widths = {len(re.findall(r"<t[dh]", row)) for row in rows}
    assert widths <= {2, 3, 4, 5, 6, 8}


@pytest.mark.parametrize("text", ["# a", "- b", "+ c", "1. d", "2) e", "===", "https://f.g", "@h"])
def test_markdown_of_a_line_is_that_line(text: str) -> None:
    html = MarkdownIt("gfm-like", {"linkify": False}).render(markdown_text(text))
    assert html == f"<p>{text}</p>\n"


def test_a_run_that_is_training_says_that_it_is_unfinished(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "report.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    early = [line for line in lines if json.loads(line)["step"] <= 4]
    (run / "metrics.jsonl").write_text("".join(early) + '{"event": "tra')
    html, markdown = write_report([run], None, QUICK)
    assert (html.parent, markdown.parent) == (run, run)
    page = Page(html)
    assert "Unfinished: records up to step 4" in page.text
    assert "the budget is 6 iterations" in page.text
    assert "Unfinished: records up to step 4" in markdown.read_text()
    last = json.loads([line for line in early if '"evaluate"' in line][-1])["models"]
    rows = {row[0].split("\n")[0]: row[1:] for row in page.table("Final results")}
    for name in ("alone", "kd", "vit"):
        assert rows[name][0] == f"{last[name]['top1']:.2f}"
        best = max(last[name]["top1"], last[f"{name}/ema-0.5"]["top1"])
        assert rows[name][2] == f"{best:.2f}"
    assert float(page.fact("device hours until step 3")) >= 0
    assert page.fact("torch").startswith("2.")
    # It resumes with the report in its folder.
    assert tiny.run(run / "recipe.yaml", f"output={run}") == 0
    assert "Finished: 6 steps" in Page(write_report([run], None, QUICK)[0]).text


def test_several_runs_share_curves_and_a_table_of_differences(
    tiny_run: Path, hostile_run: Path, tmp_path: Path
) -> None:
    html, markdown = write_report([tiny_run, hostile_run], tmp_path / "both")
    page = Page(html)
    assert [row[0] for row in page.table("Final results") if len(row) == 1] == [
        "tiny",
        HOSTILE_NAME,
    ]
    keys = {row[0]: row[1:] for row in page.table("What differs between the recipes")}
    assert keys["train.budget"] == ["6 iterations", "4 iterations"]
    assert keys["students.vit"] == ["present", "(absent)"]
    assert "students.vit.model" not in keys
    assert "train.batch_size_global" not in keys
    for name in ("tiny: alone", "tiny: kd", f"{HOSTILE_NAME}: kd"):
        assert name in page.text
    assert "images right" not in page.text
    assert "## What differs between the recipes" in markdown.read_text()


def test_names_that_are_not_distinct_become_folders(tiny_run: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(tiny_run, tmp_path / "twin"))
    page = Page(write_report([tiny_run, twin], tmp_path / "both", QUICK)[0])
    assert [row[0] for row in page.table("Final results") if len(row) == 1] == [
        str(tiny_run),
        str(twin),
    ]
    assert "The recipes are the same but for names and folders." in page.text


def test_students_can_be_chosen(tiny_run: Path, tmp_path: Path) -> None:
    page = Page(write_report([tiny_run], tmp_path, Options(("kd",), images=False))[0])
    names = {row[0].split("\n")[0] for row in page.table("Final results")}
    assert names == {"", "teacher", "kd", "ema-0.5"}
    assert "Every class" in page.tables_of("kd "), "compared with a student that is not shown"
    assert not page.tables_of("alone ")
    assert "data:image" not in page.html
    with pytest.raises(InputError, match="--student kdd: there is no such student; there are"):
        write_report([tiny_run], tmp_path, Options(("kdd",)))


def test_evaluation_images_that_are_gone_leave_a_note(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    gone = recipe.replace(str(tiny_run.parent / "eval"), str(tmp_path / "gone"))
    assert gone != recipe
    (run / "recipe.yaml").write_text(gone)
    said: list[str] = []
    html, _ = write_report([run], None, Options(say=said.append))
    page = Page(html)
    assert (
        "Classes and images are left out; of this run distill evaluate says: data.eval" in page.text
    )
    assert any("gone" in line for line in said)
    assert page.table("Final results")


def test_energy_and_sparklines() -> None:
    assert energy(None) == "not measured"
    assert energy(5.4e6) == "1.5 kWh"
    assert energy(1800) == "0.5 Wh"
    assert sparkline((1.0, 2.0, 3.0)) == "▁▅█"
    assert sparkline((2.0, 2.0)) == "▁▁"
    assert len(sparkline(tuple(map(float, range(500))))) == 24
