"""Recipes: read, checked strictly, written back resolved."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pathup import storage
from pathup.errors import PathUpError, nearest, unknown
from pathup.recipes.baselines import (
    AdversarialTraining,
    BaselinesRecipe,
    BaselineTraining,
    BSRGANRecipe,
    CodesRecipe,
    LDMSRRecipe,
    StyleGAN2Recipe,
    VQGANRecipe,
)
from pathup.recipes.diffusion import DiffusionRecipe, FeatureEntropyRecipe
from pathup.recipes.downstream import (
    ABMILRecipe,
    ClassifierTraining,
    DistillationRecipe,
    DownstreamRecipe,
    ViTRecipe,
)
from pathup.recipes.sampling import SamplingRecipe
from pathup.recipes.schema import (
    AutoencoderRecipe,
    ClassSpec,
    EncoderRecipe,
    LevelSpec,
    ModelRecipe,
    Recipe,
    TilesRecipe,
)

__all__ = [
    "ABMILRecipe",
    "AdversarialTraining",
    "AutoencoderRecipe",
    "BSRGANRecipe",
    "BaselineTraining",
    "BaselinesRecipe",
    "ClassSpec",
    "ClassifierTraining",
    "CodesRecipe",
    "DiffusionRecipe",
    "DistillationRecipe",
    "DownstreamRecipe",
    "EncoderRecipe",
    "FeatureEntropyRecipe",
    "LDMSRRecipe",
    "LevelSpec",
    "ModelRecipe",
    "Recipe",
    "SamplingRecipe",
    "StyleGAN2Recipe",
    "TilesRecipe",
    "VQGANRecipe",
    "ViTRecipe",
    "load_recipe",
    "recipe_from_dict",
    "recipe_text",
    "recipe_with",
    "save_recipe",
    "shipped_recipes",
]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in resources.files(__name__).iterdir() if p.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a shipped recipe by name or a YAML file by path.

    Raises
    ------
    PathUpError
        No such recipe, broken YAML, a key given twice, an unknown key (the nearest known key is named) or a wrong
        type or value.
    """
    text = str(name_or_path)
    if text in shipped_recipes():
        source = f"recipe '{text}'"
        content = (resources.files(__name__) / f"{text}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(text)
        if not path.is_file():
            raise PathUpError(
                f"no recipe '{text}': it is neither a file nor a shipped recipe ({', '.join(shipped_recipes())})"
                f"{nearest(text, shipped_recipes())}"
            )
        source = f"recipe {path}"
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PathUpError(f"{source} is not readable text ({error})") from error
    return recipe_from_dict(_yaml_values(content, source), source=source)


def _yaml_values(content: str, source: str) -> Any:
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        repeated = _repeated_key(node, set())
        if repeated is not None:
            raise PathUpError(
                f"{source}, line {repeated.start_mark.line + 1}: key '{repeated.value}' is given a second time; "
                "keep one"
            )
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise PathUpError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def recipe_from_dict(values: Any, *, source: str = "recipe") -> Recipe:
    """Check plain values against the schema; see `load_recipe` for the errors."""
    if not isinstance(values, dict):
        raise PathUpError(f"{source} holds {type(values).__name__}, but a mapping of keys was needed")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise PathUpError(f"{source}: {_sentence(error)}") from None


def recipe_with(recipe: Recipe, changes: dict[str, Any], *, source: str) -> Recipe:
    """The recipe with some values replaced, named from its top (``diffusion.feature_entropy.beta``).

    `source` is what an error names. See `load_recipe` for the errors.
    """
    values = recipe.model_dump()
    for name, value in changes.items():
        place = values
        *path, last = name.split(".")
        for part in path:
            if not isinstance(place.get(part), dict):
                parts = [key for key, value in place.items() if isinstance(value, dict)]
                raise unknown(f"section in {source}, {name}:", part, parts)
            place = place[part]
        place[last] = value
    return recipe_from_dict(values, source=source)


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe atomically."""
    storage.write_text(path, recipe_text(recipe))


def _repeated_key(node: yaml.Node | None, seen: set[int]) -> yaml.ScalarNode | None:
    """The first key that a mapping has twice; YAML would take the last one without a word."""
    if node is None or id(node) in seen:  # an alias leads to a node again
        return None
    seen.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    return key
                keys.add((key.tag, key.value))
            children.append(value)
    return next((found for child in children if (found := _repeated_key(child, seen)) is not None), None)


def _sentence(error: ValidationError) -> str:
    parts = []
    found = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")  # a misspelt key is named first
    for item in found[:3]:
        place = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            key, known = str(item["loc"][-1]), _known_keys(item["loc"][:-1])
            parts.append(f"unknown key '{place}'{nearest(key, known)} (known here: {', '.join(known)})")
        elif item["type"] == "missing":
            parts.append(f"key '{place}' is missing")
        elif item["type"] == "value_error":
            parts.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
        else:
            told = f"'{place}' is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
            parts.append(told + (_number_hint(item["input"]) if item["type"] == "float_type" else ""))
    more = len(error.errors()) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _number_hint(found: Any) -> str:
    """How to write a number that YAML took for text: it knows 5.0e-6, but neither 5e-6 nor 1.0e6."""
    parts = re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)", found) if isinstance(found, str) else None
    if parts is None:
        return ""
    fraction = parts[2] if parts[2] and parts[2] != "." else ".0"
    return f"; YAML takes this for text, so write {parts[1]}{fraction}e{parts[3] or '+'}{parts[4]}"


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in place:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
