"""`distill evaluate` on every place that holds weights, against timm and counting by hand."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from scored import by_hand, eval_images, same, scores
from tiny import NUM_EVAL, checkpoint

from distill.errors import InputError
from distill.evaluation.scores import Scores
from distill.models import cifar as cifar  # registers its models
from distill.models.export_format import read_record
from distill.release.find import find_models, which_weights
from distill.release.results import Results, SetResult

STUDENTS = ("alone", "kd", "vit")


# ---- every place that holds weights --------------------------------------------------------------


def test_a_run_is_evaluated_by_its_best_weights(tiny_run: Path) -> None:
    results = scores(tiny_run)
    assert list(results) == [*STUDENTS, "teacher"]
    for name in STUDENTS:
        same(
            results[name],
            by_hand(
                timm.create_model(f"local-dir:{tiny_run}/best/{name}", pretrained=True), tiny_run
            ),
        )
        record = json.loads((tiny_run / "best" / name / "distill.json").read_text())
        assert results[name].top1 == pytest.approx(record["top1"], abs=1e-9)
        assert results[name].agreement is not None


def test_raw_weights_and_averages_are_those_of_the_newest_checkpoint(tiny_run: Path) -> None:
    report = json.loads((tiny_run / "report.json").read_text())["students"]
    raw, average = scores(tiny_run, weights="raw"), scores(tiny_run, weights="ema-0.5")
    for name in STUDENTS:
        for result, expected in (
            (raw, report[name]["last"]),
            (average, report[name]["averages"]["ema-0.5"]),
        ):
            for key, value in expected.items():
                assert getattr(result[name], key) == pytest.approx(value, abs=1e-6), (name, key)
    assert raw["kd"].loss != average["kd"].loss
    net = timm.create_model("cifar_resnet8", num_classes=10)
    net.load_state_dict(load_file(checkpoint(tiny_run) / "kd.model.safetensors"))
    same(raw["kd"], by_hand(net, tiny_run))
    shadow = load_file(checkpoint(tiny_run) / "kd.ema-0.5.safetensors")
    net.load_state_dict({key: value for key, value in shadow.items() if not key.startswith("ema/")})
    same(average["kd"], by_hand(net, tiny_run))


def test_the_word_of_earlier_versions_for_raw_weights_is_still_read(
    tiny_run: Path, tmp_path: Path
) -> None:
    assert scores(tiny_run, weights="last", student="kd") == scores(
        tiny_run, weights="raw", student="kd"
    )
    (found,) = find_models(tiny_run, model=None, student="kd", weights="last", image_size=None)
    assert found.record["weights"] == "raw"
    old = tmp_path / "old"
    shutil.copytree((tiny_run / "best/kd").resolve(), old)
    record = json.loads((old / "distill.json").read_text())
    (old / "distill.json").write_text(json.dumps({**record, "weights": "last"}))
    assert read_record(old) == {**record, "weights": "raw"}
    (old / "distill.json").write_text(json.dumps({**record, "weights": "ema-0.5"}))
    assert read_record(old)["weights"] == "ema-0.5"


def test_weights_are_called_best_only_where_a_run_kept_them_as_the_best(tiny_run: Path) -> None:
    report = json.loads((tiny_run / "report.json").read_text())["students"]["kd"]["best"]
    newest = checkpoint(tiny_run)

    def words(path: Path, weights: str) -> str:
        (found,) = find_models(path, model=None, student="kd", weights=weights, image_size=None)
        return which_weights(found)

    assert words(tiny_run, "best") == f"best weights ({report['weights']}, step {report['step']})"
    step = int(newest.name.removeprefix("step-"))
    assert words(tiny_run, "raw") == words(newest, "best") == f"raw weights of step {step}"
    assert words(tiny_run, "ema-0.5") == f"ema-0.5 weights of step {step}"


def test_a_checkpoint_is_evaluated_by_its_own_weights(tiny_run: Path) -> None:
    older, newest = sorted((tiny_run / "checkpoints").iterdir())
    assert scores(newest) == scores(tiny_run, weights="raw")
    assert scores(older)["alone"].loss != scores(newest)["alone"].loss
    (found,) = find_models(older, model=None, student="kd", weights="ema-0.5", image_size=None)
    assert found.record["step"] == 3
    assert found.record["weights"] == "ema-0.5"


def test_one_student_of_a_run(tiny_run: Path) -> None:
    assert list(scores(tiny_run, student="kd")) == ["kd", "teacher"]
    assert scores(tiny_run, student="kd")["kd"] == scores(tiny_run)["kd"]


@pytest.mark.parametrize("name", STUDENTS)
def test_an_export_is_evaluated_as_in_its_run(name: str, tiny_run: Path) -> None:
    results = scores(tiny_run / "best" / name, data=str(tiny_run.parent / "eval"))
    assert list(results) == [name]
    expected = scores(tiny_run)[name]
    assert (results[name].top1, results[name].top5, results[name].loss) == (
        expected.top1,
        expected.top5,
        expected.loss,
    )
    assert results[name].agreement is None, "without the run its teacher is unknown"


def test_an_export_may_hold_a_pickle_as_a_teacher_may(tiny_run: Path, tmp_path: Path) -> None:
    export = tiny_run / "best" / "alone"
    shutil.copy(export / "config.json", tmp_path)
    weights = load_file(export / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (found,) = find_models(tmp_path, model=None, student=None, weights="best", image_size=None)
    assert (
        found.view
        == find_models(export, model=None, student=None, weights="best", image_size=None)[0].view
    )
    assert all(
        torch.equal(found.net.state_dict()[name], tensor) for name, tensor in weights.items()
    )


@pytest.mark.parametrize("kind", ["safetensors", "pth", "averaged"])
def test_a_file_of_weights_is_evaluated(kind: str, tiny_run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=1000)
    images, _ = eval_images(tiny_run)
    folder = tmp_path / "photos"
    for index, synset in enumerate(("n01440764", "n01443537", "n01484850")):
        (folder / synset).mkdir(parents=True)
        pixels = (images[index] * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((200, 170)).save(folder / synset / "one.png")
    weights = net.state_dict()
    if kind == "safetensors":
        save_file(weights, tmp_path / "net.safetensors")
    elif kind == "pth":
        torch.save(
            {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
            tmp_path / "net.pth",
        )
    else:
        other = {key: torch.zeros_like(value) for key, value in weights.items()}
        torch.save({"state_dict": other, "state_dict_ema": weights}, tmp_path / "net.pth")
    file = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pth")
    results = scores(file, model="test_resnet", data=str(folder), classes="imagenet-1k")
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    pictures = torch.stack(
        [view(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*/*.png"))]
    )
    with torch.no_grad():
        logits = net.eval()(pictures)
    assert results["net"].num_samples == 3
    assert results["net"].loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, torch.arange(3))), abs=1e-4
    )
    assert results["net"].top1 == pytest.approx(
        100 * float((logits.argmax(1) == torch.arange(3)).double().mean())
    )


# ---- what must not change a score ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": NUM_EVAL}, {"num_workers": 2}],
)
def test_batch_size_and_workers_change_no_score(options: dict[str, int], tiny_run: Path) -> None:
    expected, results = scores(tiny_run), scores(tiny_run, **options)
    for name, result in results.items():
        figures = expected[name].as_dict()
        figures.pop("images_per_s")
        for key, value in figures.items():
            assert getattr(result, key) == pytest.approx(value, abs=1e-5), (name, key)


def test_a_size_that_the_model_does_not_take_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    """The patches of one have 4 pixels; in the other nothing is left before the last stage."""
    with pytest.raises(InputError, match=r"--image-size: the model does not take images of 18 px"):
        scores(tiny_run, student="vit", weights="raw", image_size=18)
    net = timm.create_model("test_convnext", num_classes=10)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    how = {"model": "test_convnext", "data": "fashion_mnist"}
    with pytest.raises(InputError, match=r"does not take images of 8 px \(Calculated padded"):
        scores(tmp_path / "net.pth", image_size=8, **how)


def test_precision_and_image_size_are_used(tiny_run: Path) -> None:
    plain = scores(tiny_run, student="kd")["kd"]
    assert scores(tiny_run, student="kd", precision="bf16")["kd"].loss != plain.loss
    larger = scores(tiny_run, student="kd", image_size=24)["kd"]
    assert larger.loss != plain.loss
    assert larger.num_samples == NUM_EVAL
    raw = scores(tiny_run, student="vit", weights="raw", image_size=24)["vit"]
    assert raw.num_samples == NUM_EVAL


@pytest.mark.parametrize(("width", "in_one_line"), [(80, False), (100, False), (160, True)])
def test_no_heading_and_no_name_of_the_table_is_cut(width: int, in_one_line: bool) -> None:
    scores = Scores(
        top1=24.62,
        top5=61.54,
        top1_error=5.34,
        loss=2.4162,
        ece=0.14,
        adaptive_ece=0.22,
        num_samples=65,
        agreement=27.69,
        teacher_kl=0.0147,
        images_per_s=43.2,
    )
    name = "a_student_with_a_name_of_forty_characters"
    found = SetResult("", "", "", 12, "", {"student": scores, name: scores})
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(Results((), {"": found}).table(width))
    said = console.export_text()
    assert "…" not in said
    assert ("cross-entropy" in said) == in_one_line
    assert len(re.findall("24.62 +5.34 +61.54 +2.4162 +14.00 +27.69 +0.0147", said)) == 2
    assert name in "".join(line.partition("  ")[0].strip() for line in said.splitlines())
