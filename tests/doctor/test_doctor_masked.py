"""The doctor counts what a student that reconstructs removed patches computes."""

import pytest
from tiny import MASKED

from distill.doctor.measure import measure_student
from distill.doctor.profiles import StudentProfile
from distill.recipe.schema import StudentSpec

IMAGES = 16


def profile(**objective: object) -> StudentProfile:
    student = {**MASKED["students"]["pre"], "model": "convnextv2_tiny", "model_args": {}}
    spec = StudentSpec.model_validate({**student, "objective": objective})
    return measure_student("pre", spec, 0, 224, "bf16")


def test_visible_patches_and_the_decoder_are_counted() -> None:
    whole = profile(hint={"loss": "feature"})
    masked = profile(masked={"loss": "fcmae", "decoder_width": 512})
    # embed 768 -> 512, the token, a block of 512, predict 512 -> 3,072
    block = 512 * 49 + 512 + 2 * 512 + 2 * 512 * 2048 + 2048 + 512 + 2 * 2048
    decoder = (768 + 1) * 512 + 512 + block + (512 + 1) * 3072
    assert masked.parameters - whole.parameters == decoder
    ratio = masked.train.flops(IMAGES) / whole.train.flops(IMAGES)
    # 19 of 49 patches, the depth-wise convolutions on all, and a decoder of 4 M on 49 positions
    assert ratio == pytest.approx(19 / 49 + 0.05, abs=0.02)
    more = profile(masked={"loss": "fcmae", "decoder_width": 512, "mask_ratio": 0.2})
    assert more.train.flops(IMAGES) > 1.5 * masked.train.flops(IMAGES)
