"""Chooses a student: small compared to its teacher, with ImageNet weights if available."""

from dataclasses import dataclass

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import get_hf_file_metadata

from distill.models import cifar as cifar  # registers its models
from distill.models.build import config, create

_REACH_S = 5.0  # timeout of a request to the Hub
_TINY_IMAGE = 48  # pixels; ImageNet models shrink such an image to less than 2x2 before their head
# (millions of parameters with 10 classes, model), smallest first. Without ImageNet weights ResNets
# learn fastest. After 5 epochs with 600 images and the same teacher: resnet10t 76.5 %,
# mobilenetv4_conv_small 64.2 %, regnetx_002 61.2 % (docs/log.md).
_SMALL = ((4.9, "resnet10t.c3_in1k"), (11.2, "resnet18.a1_in1k"))
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class StudentFacts:
    """A student as in a recipe, with the reasons for its model and its weights."""

    model: str
    pretrained: bool
    parameters: int
    why_model: str
    why_weights: str


def choose_student(
    name: str | None, *, image_size: int, num_classes: int, teacher_parameters: int | None
) -> StudentFacts:
    """Returns the student `name`, or a small one if it is None.

    Raises:
        InputError: timm has no model with this name, or cannot build it.
    """
    if name is not None:
        why = "--student"
    elif image_size < _TINY_IMAGE:
        name, why = "cifar_resnet20", f"made for images as small as {image_size} pixels"
    else:
        # At most half of its teacher: a student of the same size would have no use.
        limit = (teacher_parameters or 50_000_000) / 2e6
        fitting = [model for size, model in _SMALL if size <= limit]
        name = fitting[-1] if fitting else _SMALL[0][1]
        why = (
            "at most half the size of its teacher"
            if teacher_parameters and fitting
            else "small and fast"
        )
    pretrained, why_weights = _weights_of(name)
    model = name if pretrained else name.partition(".")[0] if ":" not in name else name
    net = create(model, num_classes=num_classes, image_size=image_size)
    return StudentFacts(
        model, pretrained, sum(p.numel() for p in net.parameters()), why, why_weights
    )


def _weights_of(name: str) -> tuple[bool, str]:
    """Whether pretrained weights of a model are available, and the reason."""
    known = config(name)
    repository = known.get("hf_hub_id")
    if not repository:
        if known.get("url") or known.get("file"):
            return True, "pretrained weights of timm"
        return False, "random weights: timm has no others"
    files = [known["hf_hub_filename"]] if known.get("hf_hub_filename") else list(_WEIGHT_FILES)
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return True, "ImageNet weights, which are in the cache of this machine"
    if constants.HF_HUB_OFFLINE:
        return (
            False,
            (
                "random weights: HF_HUB_OFFLINE is set, and no others are in the cache; online:"
                " pretrained"
            ),
        )
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0]), timeout=_REACH_S)
    except Exception as error:  # no network, a proxy that refuses, no such file
        return (
            False,
            (
                f"random weights: others cannot be downloaded ({type(error).__name__}); online:"
                " pretrained"
            ),
        )
    return True, "ImageNet weights, downloaded once"
