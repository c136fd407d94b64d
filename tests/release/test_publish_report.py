"""Which files `distill publish` commits, and which it leaves out or deletes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
from command import Cli
from fake_hub import FakeHub
from publishing import publish, unchanged

from distill.checkpoint.layout import REPORT_FILE
from distill.errors import InputError

PAGE = ("report.html", "report.md", "curves.png")


def test_the_report_of_a_run_is_published_without_images(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    command = ("publish", run, "alice/net", "--student", "kd", "--license", "mit")
    assert cli("report", run, "--no-predictions").code == 0
    page = (run / "report.html").read_text()
    (run / "report.html").write_text(page + '<img src="data:image/jpeg;base64,AAAA">')
    done = cli(*command)
    assert done.code == 0, done.err
    assert "report.html is left out: it shows images of the evaluation set" in done.out
    assert f"`distill report {run} --no-images`" in done.out
    files = hub["alice/net"].files()
    assert "report.html" not in files
    assert files["report.md"] == (run / "report.md").read_bytes()
    (run / "report.html").write_text(page)
    done = cli(*command)
    assert "left out" not in done.out
    files = hub["alice/net"].files()
    for name in PAGE:
        assert files[name] == (run / name).read_bytes()
    assert "![Training curves](curves.png)" in files["README.md"].decode()


def test_a_report_that_is_older_than_the_run_is_left_out(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    before = (run / REPORT_FILE).stat().st_mtime - 10
    for name in PAGE:
        (run / name).write_bytes(b"old")
        os.utime(run / name, (before, before))
    done = cli("publish", run, "alice/net", "--student", "kd", "--license", "mit", "--dry-run")
    assert done.code == 0, done.err
    for name in PAGE:
        assert f"{name} is left out: it is older than report.json" in done.out
        assert f"  {name} " not in done.out
    assert "![Training curves]" not in done.out


def test_a_gitignore_leaves_nothing_out(hub: FakeHub, tiny_run: Path) -> None:
    hub.repository("alice/net", {".gitignore": b"*.safetensors\n*.json\nLICENSE\n"})
    publish(tiny_run / "best/kd")
    files = hub["alice/net"].files()
    assert {"model.safetensors", "config.json", "distill.json", "LICENSE"} <= files.keys()
    assert files[".gitignore"] == b"*.safetensors\n*.json\nLICENSE\n"


def test_a_hub_that_leaves_files_out_makes_no_commit(hub: FakeHub, tiny_run: Path) -> None:
    hub.repository("alice/net", {".gitignore": b"config.json"})
    hub.hub.keeps_gitignore = True
    with (
        unchanged(hub),
        pytest.raises(InputError, match=r"its \.gitignore leaves out config\.json: delete"),
    ):
        publish(tiny_run / "best/kd")


def test_a_revision_of_the_name_is_the_branch(hub: FakeHub, tiny_run: Path) -> None:
    hub.repository("alice/net", {"a": b"1"})
    main = hub["alice/net"].head().oid
    made = publish(tiny_run / "best/kd", repo="hf://alice/net@dev")
    assert hub["alice/net"].head().oid == main
    assert hub["alice/net"].head("dev").oid == made.commit
    with unchanged(hub):
        changes: tuple[dict[str, Any], ...] = ({"branch": "next"}, {"pull_request": True})
        for how in changes:
            with pytest.raises(InputError, match="give one"):
                publish(tiny_run / "best/kd", repo="hf://alice/net@dev", **how)
        with pytest.raises(InputError, match="is a commit, and what is published to is a branch"):
            publish(tiny_run / "best/kd", repo=f"hf://alice/net@{made.commit}")


def test_only_files_of_an_earlier_publication_are_deleted(
    hub: FakeHub, tiny_run: Path, cli: Cli
) -> None:
    publish(tiny_run, student="kd")
    by_hand = {"curves.png": b"mine", "report.md": b"mine", "metrics.jsonl": b"mine"}
    hub["alice/net"].add(by_hand)
    done = cli("publish", tiny_run / "best/kd", "alice/net", "--license", "mit")
    assert done.code == 0, done.err
    assert "deleted there, of an earlier publication: recipe.yaml, report.json\n" in done.out
    files = hub["alice/net"].files()
    assert not {"recipe.yaml", "report.json"} & files.keys()
    assert {name: files[name] for name in by_hand} == by_hand
    again = cli("publish", tiny_run / "best/kd", "alice/net", "--license", "mit")
    assert "nothing new in commit" in again.out
    assert "deleted there" not in again.out


def test_the_command_that_loads_names_the_revision(hub: FakeHub, tiny_run: Path, cli: Cli) -> None:
    hub.repository("bob/net", {"a": b"1"})
    command = ("publish", tiny_run / "best/kd", "--license", "mit")
    for options, expected in (
        (("alice/net",), "hf-hub:alice/net'"),
        (("alice/net", "--revision", "dev"), "hf-hub:alice/net@dev'"),
        (("bob/net", "--pull-request"), "hf-hub:bob/net@"),
    ):
        done = cli(*command, *options)
        assert done.code == 0, done.err
        assert f"timm.create_model('{expected}" in done.out
        name = done.out.split("timm.create_model('")[1].split("'")[0]
        assert timm.create_model(name, pretrained=True).num_classes == 10


def test_a_config_without_a_crop_has_the_one_of_timm(
    tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    export = tmp_path / "export"
    shutil.copytree((tiny_run / "best/kd").resolve(), export)
    config = json.loads((export / "config.json").read_text())
    del config["pretrained_cfg"]["crop_pct"]
    (export / "config.json").write_text(json.dumps(config))
    shown = cli("publish", export, "alice/net", "--license", "mit", "--dry-run")
    assert shown.code == 0, shown.err
    assert "It sees 16 x 16 pixels (crop 0.875, bicubic)" in shown.out
