"""`distill publish`: one commit of everything, which loads again everywhere, or no change."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
import yaml
from command import Cli
from fake_hub import FakeHub
from publishing import LICENCE, finished_copy, publish, scores_of, unchanged
from tiny import checkpoint, run, write_recipe

from distill.errors import InputError
from distill.files import sha256_of
from distill.models.hub.derived import teachers_of_checkpoint
from distill.models.hub.figures import read_scores
from distill.models.hub.licences import Noted
from distill.recipe import load_recipe
from distill.release.evaluate import evaluate_models
from distill.release.export import export_student
from distill.release.publish import publish_model

FILES = {
    ".gitattributes",
    "LICENSE",
    "README.md",
    "config.json",
    "distill-files.json",
    "distill.json",
    "metrics.jsonl",
    "model.safetensors",
    "recipe.yaml",
    "report.json",
}


def metadata(hub: FakeHub, repo: str = "alice/net", revision: str = "main") -> dict:
    card = hub[repo].files(revision)["README.md"].decode()
    return yaml.safe_load(card.split("---\n")[1])


# ---- what is published ---------------------------------------------------------------------------


def test_a_run_is_one_commit_that_timm_loads(hub: FakeHub, tiny_run: Path, cli: Cli) -> None:
    done = cli("publish", tiny_run, "alice/net", "--student", "kd", *LICENCE)
    assert done.code == 0, done.err
    repository = hub["alice/net"]
    assert len(repository.titles()) == 2
    assert repository.titles()[0].startswith("kd: best weights (")
    files = repository.files()
    assert set(files) == FILES
    for name in ("config.json", "distill.json", "model.safetensors"):
        assert files[name] == (tiny_run / "best/kd" / name).read_bytes()
    for name in ("recipe.yaml", "report.json", "metrics.jsonl"):
        assert files[name] == (tiny_run / name).read_bytes()
    assert json.loads(files["config.json"])["label_names"][0] == "T-shirt/top"
    assert files["LICENSE"].startswith(b"MIT License\n\nCopyright (c) alice\n")
    assert "loaded back from there: the logits are the same, bit for bit" in done.out
    assert repository.head().oid[:12] in done.out

    images = torch.rand(4, 3, 16, 16)
    published = timm.create_model("hf-hub:alice/net", pretrained=True).eval()
    local = timm.create_model(f"local-dir:{tiny_run}/best/kd", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(published(images), local(images))


def test_the_round_trip_through_evaluate_teacher_and_student(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    publish(tiny_run, student="kd")
    data = {"data": "fashion_mnist", "split": "test", "num_workers": 0}
    there = evaluate_models("hf://alice/net", **data)["net"]
    assert there == evaluate_models(tiny_run / "best/kd", **data)["kd"]
    hub_name = {"weights": "hf://alice/net"}
    recipe = write_recipe(
        tmp_path,
        {"teacher": {"model": "cifar_resnet8", "image_size": None, **hub_name}},
        {"students": {"tuned": {**hub_name, "objective": {"soft": {"loss": "kl"}}}}},
    )
    assert run(recipe) == 0
    publish(tmp_path / "run", repo="alice/tuned")
    values = metadata(hub, "alice/tuned")
    commit = hub["alice/net"].head().oid
    assert values["base_model"] == "alice/net"
    assert values["base_model_relation"] == "finetune"
    assert values["teacher"] == f"hf://alice/net@{commit}"
    card = hub["alice/tuned"].files()["README.md"].decode()
    assert f"Teacher: `cifar_resnet8`, weights `hf://alice/net@{commit}`, SHA-256" in card
    assert f"Licence of teacher hf://alice/net@{commit}: mit." in card


def test_the_card_says_what_the_model_is(hub: FakeHub, tiny_run: Path) -> None:
    publish(tiny_run, student="kd")
    record = json.loads((tiny_run / "best/kd/distill.json").read_text())
    report = json.loads((tiny_run / "report.json").read_text())
    values = metadata(hub)
    assert values["license"] == "mit"
    assert values["library_name"] == "timm"
    assert values["pipeline_tag"] == "image-classification"
    assert "distilled-from:cifar_resnet14" in values["tags"]
    assert "base_model" not in values, "it began with random weights"
    (model,) = values["model-index"]
    assert model["name"] == "net"
    metrics = {m["name"]: m["value"] for r in model["results"] for m in r["metrics"]}
    assert metrics["Top-1 accuracy"] == pytest.approx(record["top1"], abs=1e-4)
    card = hub["alice/net"].files()["README.md"].decode()
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 3
    loaded: dict = {}
    exec(code, loaded)
    assert loaded["model"].num_classes == 10
    for expected in (
        "0.08 M parameters, 10 classes",
        f"| evaluation images of the run | 53 | {record['top1']:.2f} |",
        "6 iterations of Fashion-MNIST (train, a subset of 6,000 images) (2 % of each class)",
        "1 x ce on labels + 1 x kl on the teacher's logits (temperature 2.0)",
        "Teacher: `cifar\\_resnet14`".replace("\\", ""),
        report["origins"]["teacher"]["sha256"],
        "CPU process hours",
        "## Limits",
        "arxiv.org/abs/2305.15781",
    ):
        assert expected in card, expected
    assert str(tiny_run) not in card


@pytest.mark.parametrize("weights", ["best", "raw"])
def test_a_student_that_learns_from_labels_alone_names_no_teacher(
    hub: FakeHub, tiny_run: Path, weights: str
) -> None:
    assert "teacher" in json.loads((tiny_run / "best/kd/distill.json").read_text())
    assert "teacher" not in json.loads((tiny_run / "best/alone/distill.json").read_text())
    noted: list[Noted] = []

    def ask(found: Sequence[Noted]) -> str:
        noted.extend(found)
        return "mit"

    publish(tiny_run, student="alone", weights=weights, licence=None, ask=ask)
    assert not any(each.what.startswith("teacher") for each in noted)
    values = metadata(hub)
    assert "teacher" not in values
    assert not any(tag.startswith("distilled-from") for tag in values["tags"])
    files = hub["alice/net"].files()
    assert "teacher" not in json.loads(files["distill.json"])
    card = files["README.md"].decode()
    for words in ("distilled from", "- Teacher:", "its teacher"):
        assert words not in card, words


def test_published_again_it_makes_no_new_commit(hub: FakeHub, tiny_run: Path, cli: Cli) -> None:
    first = publish(tiny_run, student="kd")
    again = cli("publish", tiny_run, "alice/net", "--student", "kd", *LICENCE)
    assert again.code == 0
    assert "nothing new in commit" in again.out
    assert hub["alice/net"].head().oid == first.commit


def test_foreign_files_stay(
    hub: FakeHub, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repository("alice/net", {"notes/mine.md": b"keep", "README.md": b"old"})
    before = hub["alice/net"].head().oid
    publish(tiny_run, student="kd")
    replaced = "README.md there was not written by this command; the earlier one:"
    assert f"{replaced} {hub.url}/alice/net/blob/{before}/README.md" in capsys.readouterr().out
    files = hub["alice/net"].files()
    assert files["notes/mine.md"] == b"keep"
    assert files["README.md"].startswith(b"---\n")
    assert hub["alice/net"].titles()[1:] == ["by hand", "initial commit"]
    publish(tiny_run, student="alone")
    assert replaced not in capsys.readouterr().out


def test_what_an_earlier_run_said_goes_with_it(hub: FakeHub, tiny_run: Path) -> None:
    hub.repository("alice/net", {"report.json": b"another client's", "notes.md": b"keep"})
    publish(tiny_run / "best/kd")
    assert hub["alice/net"].files()["report.json"] == b"another client's"
    publish(tiny_run, student="kd")
    publish(tiny_run / "best/alone")
    files = hub["alice/net"].files()
    assert files["notes.md"] == b"keep"
    assert not {"report.json", "recipe.yaml", "metrics.jsonl"} & files.keys()
    assert len(hub["alice/net"].titles()) == 5


def test_an_export_of_a_checkpoint_names_the_teacher(tiny_run: Path, tmp_path: Path) -> None:
    best = json.loads((tiny_run / "best/kd/distill.json").read_text())
    for student, place in (("kd", tiny_run), ("kd", checkpoint(tiny_run)), ("alone", tiny_run)):
        export_student(place, tmp_path / "export", student=student, weights="raw")
        record = json.loads((tmp_path / "export/distill.json").read_text())
        assert record.get("teacher") == (best["teacher"] if student == "kd" else None)


def test_of_an_earlier_checkpoint_the_recipe_says_the_teacher(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, {"students": {"kd": {}}}))
    values = {"inputs": {"teacher (SHA-256)": "abc"}}
    expected = {"model": "cifar_resnet14", "weights": "random weights", "sha256": "abc"}
    assert teachers_of_checkpoint(recipe, values) == {"teacher": expected}
    assert recipe.teacher is not None
    gone = recipe.teacher.model_copy(update={"model": "gone", "weights": "pretrained"})
    found = teachers_of_checkpoint(recipe.model_copy(update={"teacher": gone}), {})
    expected = {"model": "gone", "weights": "pretrained gone", "sha256": "not recorded"}
    assert found == {"teacher": expected}


@pytest.mark.parametrize("weights", ["raw", "ema-0.5"])
def test_other_weights_of_the_run_and_an_export(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, weights: str
) -> None:
    export_student(tiny_run, tmp_path / "export", student="vit", weights=weights)
    publish(tiny_run, student="vit", weights=weights)
    publish(tmp_path / "export", repo="alice/export")
    assert set(hub["alice/export"].files()) == FILES - {
        "metrics.jsonl",
        "recipe.yaml",
        "report.json",
    }
    ours = [hub[name].files()["model.safetensors"] for name in ("alice/net", "alice/export")]
    assert ours[0] == ours[1] == (tmp_path / "export/model.safetensors").read_bytes()
    assert "No accuracy is known." in hub["alice/export"].files()["README.md"].decode()


def test_the_evaluation_of_the_weights_is_in_the_card(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    publish(tiny_run, student="kd", evaluation=scores_of(tiny_run / "best/kd", tmp_path / "s.json"))
    (model,) = metadata(hub)["model-index"]
    found = {
        (r["dataset"]["type"], m["name"]): m["value"]
        for r in model["results"]
        for m in r["metrics"]
    }
    assert found["imagenet-1k", "Top-1 accuracy"] == 81.25
    assert found["imagenet-1k", "Top-5 accuracy"] == 95.5
    assert found["imagenet-real", "Top-1 accuracy"] == 86.0
    assert ("imagenet-real", "Top-5 accuracy") not in found
    card = hub["alice/net"].files()["README.md"].decode()
    row = "| ImageNet-1K validation | 50,000 | 81.25 ± 0.17 | 95.50 | 0.7500 | 0.0300 | 224 px"
    assert row in card


@pytest.mark.parametrize(
    ("key", "num_classes", "num_samples", "known"),
    [
        ("val", 1000, 50_000, "imagenet-1k"),
        ("val", 1000, 5_000, None),
        ("val", 10, 50_000, None),
        ("real", 1000, 46_837, "imagenet-real"),
        ("real", 1000, 50_000, None),
        ("v2", 1000, 10_000, "imagenet-v2"),
        ("a", 200, 7_500, "imagenet-a"),
        ("a", 1000, 7_500, None),
        ("r", 200, 30_000, "imagenet-r"),
        ("sketch", 1000, 50_889, "imagenet-sketch"),
        ("sketch", 1000, 100, None),
    ],
)
def test_only_a_complete_set_has_its_known_name(
    tmp_path: Path, key: str, num_classes: int, num_samples: int, known: str | None
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    figures = {"top1": 50.0, "num_samples": num_samples, "num_skipped": 0}
    each = {"title": "A set", "num_classes": num_classes, "models": {"kd": figures}}
    file = scores_of(tmp_path, tmp_path / "s.json", sets={key: each})
    (score,) = read_scores(file, sha256_of(tmp_path / "model.safetensors"))
    if known is not None:
        assert (score.dataset, score.title) == (known, "A set")
    else:
        assert score.dataset == f"own-{key}"
        assert score.title == f"A set: {num_samples:,} images of {num_classes:,} classes"


@pytest.mark.parametrize("title", ["ImageNet-1k", "imagenet_real", "own evaluation images"])
def test_a_set_of_ones_own_has_no_known_name(tmp_path: Path, title: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    figures = {"top1": 50.0, "num_samples": 50_000, "num_skipped": 0}
    each = {"title": title, "num_classes": 1000, "models": {"kd": figures}}
    file = scores_of(tmp_path, tmp_path / "s.json", sets={title: each})
    (score,) = read_scores(file, sha256_of(tmp_path / "model.safetensors"))
    assert score.dataset == f"own-{title.lower().replace(' ', '-').replace('_', '-')}"
    assert score.title == f"{title}: 50,000 images of 1,000 classes"


def test_curves_and_another_licence(hub: FakeHub, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "plot.PNG").write_bytes(b"\x89PNG")
    (tmp_path / "terms.txt").write_text("Ask first.")
    publish(
        tiny_run,
        student="kd",
        licence="other",
        licence_file=tmp_path / "terms.txt",
        curves=tmp_path / "plot.PNG",
    )
    files = hub["alice/net"].files()
    assert files["curves.png"] == b"\x89PNG"
    assert files["LICENSE"] == b"Ask first."
    assert metadata(hub)["license_link"] == "LICENSE"
    assert b"![Training curves](curves.png)" in files["README.md"]


def test_branches_pull_requests_and_private_repositories(hub: FakeHub, tiny_run: Path) -> None:
    publish(tiny_run, student="kd", private=True)
    assert hub["alice/net"].private
    main = hub["alice/net"].head().oid
    publish(tiny_run, student="alone", branch="next")
    assert hub["alice/net"].head().oid == main
    assert hub["alice/net"].head("next").parent == main
    hub.repository("bob/net", {"README.md": b"bob's"})
    made = publish(tiny_run, repo="bob/net", student="kd", pull_request=True)
    assert made.url == f"{hub.url}/bob/net/discussions/1"
    assert hub["bob/net"].files() == {
        ".gitattributes": hub["bob/net"].files()[".gitattributes"],
        "README.md": b"bob's",
    }
    assert set(hub["bob/net"].files("refs/pr/1")) == FILES


def test_a_dry_run_shows_all_and_asks_nothing(hub: FakeHub, tiny_run: Path, cli: Cli) -> None:
    shown = cli("publish", tiny_run, "alice/net", "--student", "kd", "--dry-run")
    assert shown.code == 0, shown.err
    assert not hub.log
    for expected in ("model.safetensors", "bytes", "# net", "No licence has been chosen"):
        assert expected in shown.out
    assert "LICENSE  " not in shown.out


def test_a_finished_run_can_publish_the_best_student(hub: FakeHub, tiny_run: Path) -> None:
    best = json.loads((tiny_run / "report.json").read_text())["best"]
    made = publish_model(tiny_run, "hf://alice/net", licence="apache-2.0")
    assert hub["alice/net"].head().oid == made.commit
    assert json.loads(hub["alice/net"].files()["distill.json"])["student"] == best
    assert b"Apache License" in hub["alice/net"].files()["LICENSE"]


def test_no_token_is_published_or_printed(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli("publish", tiny_run, "alice/net", "--student", "kd", *LICENCE)
    token = "hf_alice_may_write"
    assert token not in done.out + done.err
    assert all(token.encode() not in content for content in hub["alice/net"].files().values())
    copy = finished_copy(tiny_run, tmp_path)
    for secret in (token, "hf_" + "a" * 34, "https://me:secret@example.org/x"):
        text = (tiny_run / "recipe.yaml").read_text()
        (copy / "recipe.yaml").write_text(text.replace("description: ''", f"description: {secret}"))
        with unchanged(hub), pytest.raises(InputError, match=r"recipe\.yaml, line \d+") as refused:
            publish(copy, student="kd")
        assert secret not in str(refused.value)
