"""The teacher: frozen for good, with its own pixels and precision, from every kind of weights, over
the right classes.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from tiny import sees
from torch import nn

from distill.data.label_sets import class_list, named_list
from distill.errors import InputError
from distill.losses.outputs import POOLED
from distill.models.student import create_student, student_notes
from distill.models.teacher import Teacher, build_teacher
from distill.recipe.schema import StudentSpec
from distill.recipe.schema import TeacherSpec as Spec

CLASSES = ("ant", "bee", "cat", "dog")


def images(size: int = 32, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(
    name: str = "cifar_resnet8", num_classes: int = len(CLASSES), **kwargs: float
) -> nn.Module:
    """A model whose branches are all alive and whose BatchNorm statistics are not the
    initial ones.
    """
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=num_classes, **kwargs).train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
    if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        for _ in range(2):
            model(torch.randn(4, 3, 32, 32) * 2 + 1)
    return model.eval()


def normalised(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def build(root: Path, *, classes: tuple[str, ...] = CLASSES, **kwargs: object) -> Teacher:
    return build_teacher(
        Spec(**kwargs), classes=classes, root=root, device="cpu", data_image_size=32
    )


def export(model: nn.Module, folder: Path, classes: tuple[str, ...] | None = CLASSES) -> Path:
    config = {"label_names": list(classes)} if classes else {}
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
    return folder


# ---- frozen --------------------------------------------------------------------------------------


def test_no_call_and_no_parents_train_changes_it() -> None:
    model = trained(drop_rate=0.5)
    teacher = Teacher(model, sees(32), num_classes=4)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    logits = teacher(images())
    parent = nn.ModuleDict({"student": trained(), "teacher": teacher})
    flips: tuple[Callable[[], object], ...] = (
        parent.train,
        teacher.train,
        lambda: teacher.train(True),
    )
    for flip in flips:
        flip()
        assert not any(m.training for m in teacher.modules())
        for _ in range(5):
            assert torch.equal(teacher(images()), logits)
    assert parent["student"].training
    after = teacher.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_its_logits_are_float32_constants_to_autograd() -> None:
    teacher = Teacher(trained(), sees(32), num_classes=4)
    assert not any(p.requires_grad for p in teacher.parameters())
    x = images().requires_grad_()
    logits = teacher(x)
    assert not logits.requires_grad
    weight = torch.ones(4, requires_grad=True)
    (logits * weight).sum().backward()  # what inference_mode would refuse
    assert torch.equal(weight.grad, logits.sum(0))


def test_autocast_does_not_reach_it() -> None:
    teacher = Teacher(trained(), sees(32), num_classes=4)
    expected = teacher(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher(images()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_batch_norm_in_float32(dtype: torch.dtype) -> None:
    model = trained("test_resnet")
    expected = Teacher(model, sees(32), num_classes=4)(images(32))
    running = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    teacher = Teacher(model, sees(32), num_classes=4, dtype=dtype)
    state = teacher.net.state_dict()
    assert state["fc.weight"].dtype == state["conv1.0.weight"].dtype == dtype
    assert all(torch.equal(state[key], value) for key, value in running.items())
    logits = teacher(images(32))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, atol=0.03, rtol=0.03)


# ---- pixels --------------------------------------------------------------------------------------


def test_it_sees_its_own_mean_and_std(tmp_path: Path) -> None:
    model = trained("test_convnext")  # 0.5 and 0.5, as no CIFAR student
    torch.save(model.state_dict(), tmp_path / "w.pth")
    teacher = build(tmp_path, model="test_convnext", weights="w.pth", image_size=32)
    torch.testing.assert_close(
        teacher(images()), model(normalised(images(), model)), atol=1e-5, rtol=1e-5
    )
    given = build(
        tmp_path,
        model="test_convnext",
        weights="w.pth",
        image_size=32,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    torch.testing.assert_close(given(images()), model(images()), atol=1e-5, rtol=1e-5)


def test_images_are_resized_to_its_own_size(tmp_path: Path) -> None:
    model = trained("test_vit")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    teacher = build(tmp_path, model="test_vit", weights="w.pth")
    resized = nn.functional.interpolate(images(), size=(160, 160), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        teacher(images()), model(normalised(resized, model)), atol=1e-5, rtol=1e-5
    )
    smaller = build(tmp_path, model="test_vit", weights="w.pth", image_size=64)
    assert smaller.net.pos_embed.shape[1] == 17
    assert smaller(images()).shape == (4, 4)
    assert (
        build(
            tmp_path, model="test_vit", weights="w.pth", model_args={"img_size": 64}
        ).pixels.image_size
        == 64
    )


# ---- where the weights come from -----------------------------------------------------------------


def test_an_export_names_its_architecture_classes_and_pixels(tmp_path: Path) -> None:
    model = trained()
    export(model, tmp_path / "out")
    teacher = build(tmp_path, weights="out")
    torch.testing.assert_close(
        teacher(images()), model(normalised(images(), model)), atol=1e-5, rtol=1e-5
    )
    assert teacher.classes == CLASSES
    assert "out" in teacher.source
    with pytest.raises(InputError, match="class 1 is 'bee' for the teacher and 'cat' in the data"):
        build(tmp_path, weights="out", classes=("ant", "cat", "bee", "dog"))
    with pytest.raises(
        InputError, match=r"teacher\.model is resnet18, and .* holds a cifar_resnet8"
    ):
        build(tmp_path, weights="out", model="resnet18")
    with pytest.raises(InputError, match="picks among the students of a run"):
        build(tmp_path, weights="out", student="a")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the export is incomplete"):
        build(tmp_path, weights="out")


def test_names_by_index_are_put_in_order(tmp_path: Path) -> None:
    names = tuple("abcdefghijkl")
    export(trained(num_classes=12), tmp_path / "out", classes=None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["label_names"] = {str(i): names[i] for i in sorted(range(12), key=str)}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert build(tmp_path, weights="out", classes=names).classes == names


def test_an_export_of_another_size_comes_back(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, img_size=64, depth=1).eval()
    export(model, tmp_path / "out")
    teacher = build(tmp_path, weights="out")
    assert teacher.pixels.image_size == 64
    torch.testing.assert_close(
        teacher(images(64)), model(normalised(images(64), model)), atol=1e-5, rtol=1e-5
    )


def test_a_run_gives_its_best_student_or_the_one_named(tmp_path: Path) -> None:
    small, large = trained("cifar_resnet8"), trained("cifar_resnet14")
    export(small, tmp_path / "run" / "best" / "small")
    export(large, tmp_path / "run" / "best" / "large")
    with pytest.raises(InputError, match=r"is not finished \(no report\.json\)"):
        build(tmp_path, weights="run")
    (tmp_path / "run" / "report.json").write_text(json.dumps({"best": "large"}))

    def blocks(teacher: Teacher) -> int:
        return len(teacher.net.layer1)

    assert blocks(build(tmp_path, weights="run")) == 2
    assert blocks(build(tmp_path, weights="run", student="small")) == 1
    assert blocks(build(tmp_path, weights="run/best")) == 2
    assert blocks(build(tmp_path, weights="run/best/small")) == 1
    for report, says in (
        ("{}", r"report\.json: damaged \('best'\): name the student"),
        ('{"best": 3}', r"report\.json: damaged \(best is 3\): name the student"),
        ('{"best": null}', r"its report names no best student: name one of large, small"),
    ):
        (tmp_path / "run" / "report.json").write_text(report)
        with pytest.raises(InputError, match=says):
            build(tmp_path, weights="run")
    with pytest.raises(
        InputError, match=r"has no 'smal' \(did you mean 'small'\?\): name one of large, small"
    ):
        build(tmp_path, weights="run", student="smal")


def test_missing_weights_are_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "teacher.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"does not exist \(did you mean 'teacher.pth'"):
        build(tmp_path, model="cifar_resnet8", weights="teachr.pth")
    with pytest.raises(InputError, match=r"teacher\.pth: damaged"):
        build(tmp_path, model="cifar_resnet8", weights="teacher.pth")
    with pytest.raises(InputError, match="does not name its architecture"):
        build(tmp_path, weights="teacher.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither an exported model .* nor a finished run"):
        build(tmp_path, weights="empty")


def test_random_weights_are_the_same_each_time(tmp_path: Path) -> None:
    logits = build(tmp_path, model="cifar_resnet8", weights="random")(images())
    torch.manual_seed(5)
    assert torch.equal(build(tmp_path, model="cifar_resnet8", weights="random")(images()), logits)
    assert logits.shape == (4, 4)


def test_pretrained_weights_that_cannot_be_had_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        build(tmp_path, model="test_resnet", weights="pretrained")


# ---- classes -------------------------------------------------------------------------------------


def test_another_head_is_refused_not_replaced(tmp_path: Path) -> None:
    torch.save(trained(num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(InputError, match="the teacher's head has 7 classes, the data 4:"):
        build(tmp_path, model="cifar_resnet8", weights="seven.pth")
    export(trained(num_classes=7), tmp_path / "out", classes=None)
    with pytest.raises(InputError, match="the teacher's head has 7 classes, the data 4:"):
        build(tmp_path, weights="out")


def test_timms_own_weights_keep_their_head(tmp_path: Path) -> None:
    model = trained(num_classes=7)
    export(model, tmp_path / "out", classes=None)
    name = f"local-dir:{tmp_path / 'out'}"
    with pytest.raises(InputError, match="the teacher's head has 7 classes, the data 4:"):
        build(tmp_path, model=name, weights="pretrained")
    teacher = build(tmp_path, model=name, weights="pretrained", classes=tuple("abcdefg"))
    assert torch.equal(teacher.net.fc.weight, model.fc.weight)


def test_the_head_of_the_file_counts_not_the_default(tmp_path: Path) -> None:
    model = trained()  # timm's default for this architecture is 100
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "four.pth")
    teacher = build(tmp_path, model="cifar_resnet8", weights="four.pth")
    assert teacher.num_classes == 4
    assert torch.equal(teacher.net.fc.weight, model.fc.weight)
    assert teacher.classes is None


def test_a_file_of_names_is_compared(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    names = tmp_path / "names.txt"
    names.write_bytes(
        b"\xef\xbb\xbf" + b"".join(name.encode() + b" \r\n" for name in CLASSES) + b"\r\n"
    )
    spec = Spec(model="cifar_resnet8", weights="w.pth", classes="names.txt")
    teacher = build_teacher(spec, classes=CLASSES, root=tmp_path, device="cpu", data_image_size=32)
    assert teacher.classes == CLASSES
    with pytest.raises(InputError, match="class 0 is 'ant' for the teacher and 'bee'"):
        build_teacher(
            spec,
            classes=("bee", "ant", "cat", "dog"),
            root=tmp_path,
            device="cpu",
            data_image_size=32,
        )
    names.write_text("ant\n\nbee\ncat\ndog\n")  # a class without a name, or a line too many?
    with pytest.raises(InputError, match=r"teacher\.classes: .*names\.txt has an empty line"):
        build_teacher(spec, classes=CLASSES, root=tmp_path, device="cpu", data_image_size=32)
    names.write_text("crane\ncrane\n")  # a bird and a machine: a model may name both so
    assert class_list("names.txt", tmp_path, "teacher", distinct=False) == ("crane", "crane")
    absent = Spec(model="cifar_resnet8", weights="w.pth", classes="absent.txt")
    with pytest.raises(InputError, match=r"teacher\.classes: cannot read .*absent\.txt"):
        build_teacher(absent, classes=CLASSES, root=tmp_path, device="cpu", data_image_size=32)


def test_a_label_space_is_a_list_of_names_too(tmp_path: Path) -> None:
    torch.save(trained(num_classes=1000).state_dict(), tmp_path / "w.pth")
    imagenet = named_list("imagenet-1k") or ()
    spec = Spec(model="cifar_resnet8", weights="w.pth", classes="imagenet-1k")
    assert (
        build_teacher(
            spec, classes=imagenet, root=tmp_path, device="cpu", data_image_size=32
        ).classes
        == imagenet
    )
    swapped = (imagenet[1], imagenet[0], *imagenet[2:])
    with pytest.raises(
        InputError,
        match=r"the data imagenet-1k in another order \(1,000 classes\); class 0 is 'n01440764'",
    ):
        build_teacher(spec, classes=swapped, root=tmp_path, device="cpu", data_image_size=32)
    misspelt = Spec(model="cifar_resnet8", weights="w.pth", classes="imagenet-1K")
    with pytest.raises(
        InputError, match=r"teacher\.classes: cannot read .*did you mean 'imagenet-1k'"
    ):
        build_teacher(misspelt, classes=imagenet, root=tmp_path, device="cpu", data_image_size=32)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(trained("cifar_resnet14").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"teacher\.weights .*w\.pth for cifar_resnet8: .*unexpected: layer1\.1"
    ):
        build(tmp_path, model="cifar_resnet8", weights="w.pth")


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("layer1.0.conv1.weight", float("nan"), True),
        ("fc.bias", -float("inf"), True),
        ("bn1.running_var", float("nan"), True),
        ("bn1.running_var", float("inf"), False),  # a buffer may be infinite, as a mask is
    ],
)
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, name: str, value: float, refused: bool
) -> None:
    """The students would be blamed: their loss is not finite at the first step."""
    weights = trained().state_dict()
    weights[name].view(-1)[1] = value
    torch.save(weights, tmp_path / "w.pth")
    learning = {"objective": {"hard": {"loss": "ce"}}, "optimizer": {"name": "sgd", "lr": 0.1}}
    student = StudentSpec.model_validate(
        {"model": "cifar_resnet8", "weights": str(tmp_path / "w.pth"), **learning}
    )
    with pytest.raises(InputError, match=f"{name} has values") if refused else nullcontext():
        build(tmp_path, model="cifar_resnet8", weights="w.pth")
    with pytest.raises(InputError, match=f"{name} has values") if refused else nullcontext():
        create_student(student, classes=CLASSES, image_size=32, seed=0, root=tmp_path)
    with pytest.raises(InputError, match=f"{name} has values") if refused else nullcontext():
        student_notes(student, num_classes=len(CLASSES), image_size=32, root=tmp_path)


def test_weights_without_a_head_are_a_teacher_of_features(tmp_path: Path) -> None:
    export(timm.create_model("cifar_resnet8", num_classes=0), tmp_path / "out", classes=None)
    teacher = build(tmp_path, weights="out")
    assert not teacher.has_classes
    found = teacher.outputs(torch.rand(2, 3, 32, 32), (POOLED,))
    assert found.logits is None
    assert found.features[POOLED].shape == (2, 64, 1, 1)
