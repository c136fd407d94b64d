"""What a run is: frozen pydantic models (`schema`), loaded from YAML with `extends` and overrides
(`load`).
"""

from distill.recipe.duration import Duration, DurationValue
from distill.recipe.fingerprint import recipe_fingerprint
from distill.recipe.load import (
    dump_recipe,
    find_recipe,
    load_recipe,
    read_recipe,
    recipes_dir,
    shipped_files,
    shipped_recipes,
    shipped_studies,
)
from distill.recipe.schema import Recipe

__all__ = [
    "Duration",
    "DurationValue",
    "Recipe",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "read_recipe",
    "recipe_fingerprint",
    "recipes_dir",
    "shipped_files",
    "shipped_recipes",
    "shipped_studies",
]
