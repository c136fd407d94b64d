"""What a run is: frozen pydantic models (`schema`), loaded from YAML with `extends` and overrides
(`load`).
"""

from distill.recipe.duration import Duration, DurationValue
from distill.recipe.identity import recipe_digest
from distill.recipe.load import (
    dump_recipe,
    find_recipe,
    load_recipe,
    read_recipe,
    recipes_dir,
    shipped_files,
    shipped_recipes,
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
    "recipe_digest",
    "recipes_dir",
    "shipped_files",
    "shipped_recipes",
]
