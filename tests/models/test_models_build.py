"""Models by name: errors in the recipe's words, sizes, and initial weights as a function of the
seed.
"""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from distill.errors import InputError
from distill.models.build import config, create
from distill.models.student import create_student
from distill.recipe.schema import CESpec, ObjectiveSpec, OptimizerSpec, StudentSpec

CLASSES = tuple("abcdefghij")


def student(**kwargs: object) -> StudentSpec:
    objective = ObjectiveSpec(hard=CESpec(loss="ce"))
    return StudentSpec(
        **{
            "model": "cifar_resnet8",
            "objective": objective,
            "optimizer": OptimizerSpec(name="sgd", lr=0.1),
            **kwargs,
        }
    )


def weights_of(spec: StudentSpec, seed: int, root: Path = Path()) -> dict[str, torch.Tensor]:
    model, _ = create_student(spec, classes=CLASSES, image_size=32, seed=seed, root=root)
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"no model 'resnet51' \(did you mean .*'resnet50'"),
        ("cifar_resnet21", r"\(did you mean 'cifar_resnet20'"),
        (
            "resnet50.a1_in2k",
            r"resnet50 has no pretrained tag 'a1_in2k' \(did you mean 'a1_in1k'.*it has .*tv2_in1k",
        ),
        ("timm/resnet50", r"hf_hub:timm/resnet50"),
        ("local-dir:/absent", r"/absent: no exported timm model"),
        ("s3:bucket", r"a source is hf_hub: or local-dir:"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(name, num_classes=10)


def test_arguments_that_timm_refuses_are_named() -> None:
    with pytest.raises(InputError, match=r"model_args of cifar_resnet8: timm refused \(.*widht=3"):
        create("cifar_resnet8", num_classes=10, model_args={"widht": 3})
    with pytest.raises(
        InputError, match=r"model_args\.drop_path_rate of cifar_resnet8: use drop_path"
    ):
        create("cifar_resnet8", num_classes=10, model_args={"drop_path_rate": 0.1})
    with pytest.raises(InputError, match=r"drop_path: vgg11 has no stochastic depth"):
        create("vgg11", num_classes=10, drop_path=0.1)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_model_without_end_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.models.build._MOST_TENSORS", 200)
    with (
        torch.device(device),
        pytest.raises(InputError, match=r"model_args of test_vit: more than 200 parameter tensors"),
    ):
        create("test_vit", num_classes=3, image_size=32, model_args={"depth": 300})
    assert (
        create("test_vit", num_classes=3, image_size=32, model_args={"depth": 3}).blocks[2]
        is not None
    )


def test_model_args_and_rates_arrive() -> None:
    model = create(
        "cifar_resnet8", num_classes=10, drop_path=0.2, drop_rate=0.3, model_args={"in_chans": 1}
    )
    assert model.layer3[0].drop_path.drop_prob == pytest.approx(0.2)
    assert model.drop_rate == 0.3
    assert model.conv1.in_channels == 1


def test_weights_that_cannot_be_fetched_say_what_to_do() -> None:
    with pytest.raises(
        InputError,
        match=r"pretrained weights of test_resnet could not be loaded .*HF_HOME.*HF_HUB_OFFLINE=1",
    ):
        create("test_resnet", num_classes=None, pretrained=True)
    with pytest.raises(
        InputError, match=r"hf_hub:timm/absent could not be loaded .*HF_HUB_OFFLINE=1"
    ):
        create("hf_hub:timm/absent", num_classes=None, pretrained=True)
    with pytest.raises(InputError, match="timm has no pretrained weights of cifar_resnet8"):
        create("cifar_resnet8", num_classes=None, pretrained=True)
    with pytest.raises(InputError, match="timm refused"):
        create("test_resnet", num_classes=None, pretrained=True, model_args={"nonsense": 1})


def test_image_size_goes_to_models_of_one_size_only() -> None:
    assert (
        create("test_vit", num_classes=3, image_size=32).pos_embed.shape[1] == 1 + (32 // 16) ** 2
    )
    assert create("test_vit", num_classes=3).pos_embed.shape[1] == 1 + (160 // 16) ** 2
    assert (
        create(
            "test_vit", num_classes=3, image_size=32, model_args={"img_size": 64}
        ).pos_embed.shape[1]
        == 17
    )
    flexible = create(
        "test_vit", num_classes=3, image_size=32, model_args={"dynamic_img_size": True}
    )
    assert flexible.pos_embed.shape[1] == 101
    assert create("cifar_resnet8", num_classes=3, image_size=64)(
        torch.randn(2, 3, 64, 64)
    ).shape == (2, 3)


def test_local_exports_pass_through(tmp_path: Path) -> None:
    save_for_hf(
        timm.create_model("cifar_resnet8", num_classes=5), str(tmp_path), safe_serialization=True
    )
    assert create(f"local-dir:{tmp_path}", num_classes=None, pretrained=True).num_classes == 5
    assert config(f"local-dir:{tmp_path}")["num_classes"] == 5
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "cifar_resnet8"}))
    with pytest.raises(InputError, match=r"config\.json: not the config"):
        create(f"local-dir:{tmp_path}", num_classes=None)


def test_initial_weights_depend_on_seeds_alone() -> None:
    reference = weights_of(student(), seed=0)
    torch.manual_seed(99)
    state_before = torch.get_rng_state()
    assert same(reference, weights_of(student(), seed=0))
    assert torch.equal(torch.get_rng_state(), state_before)
    assert not same(reference, weights_of(student(), seed=1))
    assert not same(reference, weights_of(student(seed=1), seed=0))


def test_students_start_from_a_file(tmp_path: Path) -> None:
    source = timm.create_model("cifar_resnet8", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "start.pth")
    assert same(
        source.state_dict(), weights_of(student(weights="start.pth"), seed=0, root=tmp_path)
    )
    torch.save(timm.create_model("cifar_resnet8").state_dict(), tmp_path / "hundred.pth")
    with pytest.raises(
        InputError, match=r"hundred\.pth.*its head has 100 classes, the recipe's data 10"
    ):
        weights_of(student(weights="hundred.pth"), seed=0, root=tmp_path)
