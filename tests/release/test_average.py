"""`distill average`: the mean of checkpoints and models, and which of them a greedy soup takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command import Cli
from safetensors.torch import load_file, save_file
from scored import eval_images, scores
from tiny import checkpoint

from distill.data.holdout import held_out
from distill.data.sources import open_source
from distill.models.hub.figures import OF_THE_RUN, own_score
from distill.recipe.schema import FashionMnistSpec
from distill.release.average import average_models
from distill.release.find import find_models


def weights_of(path: Path, student: str | None, weights: str) -> dict[str, torch.Tensor]:
    (found,) = find_models(path, model=None, student=student, weights=weights, image_size=None)
    return found.net.state_dict()


def mean_by_hand(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    found = {}
    for name, newest in states[-1].items():
        every = np.stack([state[name].numpy().astype(np.float64) for state in states])
        mean = torch.from_numpy(np.asarray(every.mean(0))).to(newest.dtype)
        found[name] = mean if newest.is_floating_point() else newest
    return found


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("weights", ["raw", "ema-0.5"])
def test_the_checkpoints_of_a_run(weights: str, tiny_run: Path, tmp_path: Path) -> None:
    result = average_models([tiny_run], tmp_path / "mean", student="kd", weights=weights)
    places = sorted((tiny_run / "checkpoints").iterdir())
    assert len(places) == 2
    states = [weights_of(place, "kd", weights) for place in places]
    assert not torch.equal(states[0]["fc.weight"], states[1]["fc.weight"])
    assert_same(load_file(tmp_path / "mean/model.safetensors"), mean_by_hand(states))
    kind = "raw" if weights == "raw" else weights
    assert result.members == (f"{kind} weights of step 3", f"{kind} weights of step 6")
    record = json.loads((tmp_path / "mean/distill.json").read_text())
    assert record["members"] == list(result.members)
    assert record["weights"] == "mean of 2"
    assert "top1" not in record, "nothing was evaluated"


def test_the_result_is_an_export_as_any_other(tiny_run: Path, tmp_path: Path) -> None:
    average_models([tiny_run], tmp_path / "mean", student="vit")
    (score,) = scores(tmp_path / "mean", data=str(tiny_run.parent / "eval")).values()
    model = timm.create_model(f"local-dir:{tmp_path / 'mean'}", pretrained=True).eval()
    images, labels = eval_images(tiny_run)
    with torch.no_grad():
        answers = model((images - 0.5) / 0.5).argmax(1)
    assert score.top1 == pytest.approx(100 * float((answers == labels).double().mean()))


def test_the_best_checkpoints_are_those_of_the_metric(tiny_run: Path, tmp_path: Path) -> None:
    """With a third checkpoint that scored worst."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] == "evaluate":
            line["models"]["alone"]["top1"] = {3: 50.0, 6: 1.0}[line["step"]]
    extra = {"event": "evaluate", "step": 7, "models": {"alone": {"top1": 40.0}}}
    text = "".join(json.dumps(line) + "\n" for line in [*lines, extra])
    (run / "metrics.jsonl").write_text(text + '{"event": "eval')
    # A copy of step 3 under the name of step 7: its manifest says which step it is.
    third = run / "checkpoints/step-00000007"
    shutil.copytree(run / "checkpoints/step-00000003", third)
    result = average_models([run], tmp_path / "mean", student="alone", best=2)
    assert result.members == ("raw weights of step 3", "raw weights of step 3")
    older = weights_of(run / "checkpoints/step-00000003", "alone", "raw")
    assert_same(load_file(tmp_path / "mean/model.safetensors"), mean_by_hand([older, older]))


def test_the_best_checkpoints_of_damaged_records(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    intact = (run / "metrics.jsonl").read_bytes()
    bad = b'[1]\n\xff\n{"step": 3}\n{"step": [3], "models": {"kd": {"top1": 1}}}\n'
    (run / "metrics.jsonl").write_bytes(bad + intact)
    command = ("average", run, "--student", "kd", "--best", 2, "-o", tmp_path / "mean")
    assert cli(*command).code == 0
    (run / "metrics.jsonl").write_bytes(bad)
    assert "0 of its 2 checkpoints were evaluated" in cli(*command).err
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl: cannot be read" in cli(*command).err


def test_several_models(tiny_run: Path, tmp_path: Path) -> None:
    """An export and a checkpoint of the same model."""
    newest = checkpoint(tiny_run)
    average_models([tiny_run / "best/alone", newest], tmp_path / "mean", student="alone")
    states = [weights_of(tiny_run / "best/alone", None, "best"), weights_of(newest, "alone", "raw")]
    assert_same(load_file(tmp_path / "mean/model.safetensors"), mean_by_hand(states))


def test_a_greedy_soup_takes_what_helps(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    """A good model, itself again, and one whose head is damaged: it is left out. The accuracy is
    that on the images that did not choose.
    """
    good = tmp_path / "good"
    shutil.copytree((tiny_run / "best/kd").resolve(), good)
    tensors = load_file(good / "model.safetensors")
    images, labels = eval_images(tiny_run)
    # A head that is right about most images: the features against the labels.
    net = timm.create_model(f"local-dir:{good}", pretrained=True).eval()
    config = net.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = net.forward_head(net.forward_features((images - mean) / std), pre_logits=True)
    one_hot = torch.nn.functional.one_hot(labels, 10).float() - 0.1
    solved = torch.linalg.lstsq(features, one_hot).solution.T.contiguous()
    tensors["fc.weight"], tensors["fc.bias"] = solved, torch.zeros(10)
    save_file(tensors, good / "model.safetensors")
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    save_file({**tensors, "fc.weight": -3 * solved}, bad / "model.safetensors")
    again = tmp_path / "again"
    shutil.copytree(good, again)

    data = ["--data", tiny_run.parent / "eval", "--num-workers", 0]
    out = tmp_path / "soup"
    outcome = cli("average", bad, good, again, "--greedy", *data, "-o", out)
    assert outcome.code == 0, outcome.err
    assert f"{out}: the mean of {good}, {again}" in outcome.out
    assert f"{bad}: " in outcome.out
    assert "left out" in outcome.out
    written = load_file(out / "model.safetensors")
    assert torch.allclose(written["fc.weight"], solved, atol=1e-6)

    source = open_source(
        FashionMnistSpec(kind="fashion_mnist", split="test", path=str(tiny_run.parent / "eval")),
        Path(),
    )
    aside = torch.from_numpy(held_out(source, 0.5))
    with torch.no_grad():
        model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        right = model((images - mean) / std).argmax(1) == labels
    record = json.loads((out / "distill.json").read_text())
    assert record["num_samples"] == int((~aside).sum())
    assert record["top1"] == pytest.approx(100 * float(right[~aside].double().mean()))
    assert "that did not choose" in outcome.out
    score = own_score(record)
    assert score is not None
    assert score.title == "a part of eval, on which no members were chosen"
    assert score.dataset != OF_THE_RUN, "the card would say that these images chose the weights"


def test_files_of_weights_say_no_image_size(tmp_path: Path, cli: Cli) -> None:
    for number in range(2):
        net = timm.create_model("test_resnet", num_classes=10)
        torch.save(net.state_dict(), tmp_path / f"{number}.pth")
    command = ("average", tmp_path / "0.pth", tmp_path / "1.pth", "--model", "test_resnet", "-o")
    assumed = cli(*command, tmp_path / "assumed")
    assert "warning: " in assumed.out
    assert "160 px is timm's size of the model: give --image-size" in " ".join(assumed.out.split())
    given = cli(*command, tmp_path / "given", "--image-size", 64)
    assert "warning" not in given.out
    config = json.loads((tmp_path / "given/config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]

    state = net.state_dict()
    state["fc.bias"][3] = float("nan")
    torch.save(state, tmp_path / "1.pth")
    refused = cli(*command, tmp_path / "other")
    assert refused.code == 2
    assert "1.pth: fc.bias has values that are not finite: leave it out" in refused.err
    assert not (tmp_path / "other").exists()


def test_bad_input(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    def refused(*arguments: object) -> str:
        outcome = cli("average", *arguments)
        assert outcome.code == 2, outcome.out
        return " ".join(outcome.err.split())

    out = ["-o", tmp_path / "out"]
    assert "which student? Name one with --student: alone, kd, vit" in refused(tiny_run, *out)
    kd = ["--student", "kd"]
    assert "has 2 checkpoints, and the mean of 3 is asked for" in refused(
        tiny_run, *kd, "--last", 3, *out
    )
    assert "leave one out" in refused(tiny_run, *kd, "--last", 2, "--best", 2, *out)
    assert "is another model than" in refused(tiny_run / "best/kd", tiny_run / "best/vit", *out)
    assert "is one model: give at least two" in refused(tiny_run / "best/kd", *out)
    assert "no student 'kdd'" in refused(tiny_run, "--student", "kdd", *out)
    assert "no weights 'ema-0.9'" in refused(tiny_run, *kd, "--weights", "ema-0.9", *out)
    assert "give both" in refused(tiny_run, *kd, "--data", tiny_run, *out)
    assert "should be between 0 and 1" in refused(
        tiny_run, *kd, "--greedy", "--choose-on", 1.5, *out
    )
    assert "choose checkpoints of one run" in refused(
        tiny_run / "best/kd", tiny_run / "best/kd", "--last", 2, *out
    )
    assert "a run records its own" in refused(tiny_run, *kd, "--image-size", 32, *out)
    assert "is inside the run" in refused(tiny_run, *kd, "-o", tiny_run / "mean")
    two = (tiny_run / "best/kd", tiny_run / "best/kd")
    assert "picks among the students of a run" in refused(*two, *kd, *out)
    copy = tmp_path / "copy"
    shutil.copytree((tiny_run / "best/kd").resolve(), copy)
    assert "is one of the models" in refused(copy, tiny_run / "best/kd", "-o", copy)
    assert not (tmp_path / "out").exists()
