"""README's recipe for a folder of one's own is one, and is what distill init writes."""

import re
from pathlib import Path

import yaml

from distill.init.advice import advise
from distill.recipe import load_recipe

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_recipe_in_the_readme_is_the_one_that_init_writes(tmp_path: Path) -> None:
    (shown,) = re.findall(
        r"```yaml\n(# Written by: distill init .*?)```", README.read_text(), re.DOTALL
    )
    (tmp_path / "photos.yaml").write_text(shown)
    recipe = load_recipe(tmp_path / "photos.yaml")
    (asked,) = re.findall(r"--epochs (\d+)", shown.splitlines()[0])
    advice = advise(
        num_images=480,
        image_size=recipe.data.image_size,
        has_teacher=True,
        pretrained=False,
        epochs=int(asked),
        has_gpu=False,
        has_bf16=False,
    )
    tree = yaml.safe_load(shown)
    for key, value in advice.values.items():
        node = tree
        for part in key.split("."):
            node = node[part]
        assert node == value, key
        if why := advice.reasons.get(key):
            assert why in " ".join(re.sub(r"\n *# ", " ", shown).split()), key
