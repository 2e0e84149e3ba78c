"""The taxonomy: which class a folder, an annotation or a table row names, and the prompt it stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pathup.errors import unknown
from pathup.recipes import LevelSpec, Recipe
from pathup.recipes.schema import folded

_NUMBERED = re.compile(r"^\d+[ _-]+(?=\S)")


def label_of(recipe: Recipe, written: str, *, where: str) -> str:
    """The class label of a recipe that `written` means, as `label_among` reads it.

    Raises
    ------
    PathUpError
        No class of the recipe is called so; the nearest is named.
    """
    return label_among(class_list(recipe), written, where=where)


def class_list(recipe: Recipe) -> list[dict[str, str]]:
    """A recipe's classes as a model lists them: label and name of each."""
    return [{"label": spec.label, "name": spec.name} for spec in recipe.classes]


def label_among(classes: Sequence[Mapping[str, str]], written: str, *, where: str) -> str:
    """The class label that `written` means.

    A label, a class's full name, either behind a number (``0_N``, ``3 DCIS``); upper and lower case, spaces,
    hyphens and underscores count the same.

    Parameters
    ----------
    classes
        ``label`` and ``name`` of each, as a model's configuration lists them.
    written
        What is written there.
    where
        What holds the name (a folder, an annotation), for the message.

    Raises
    ------
    PathUpError
        No class is called so; the nearest is named.
    """
    known = {folded(name): spec["label"] for spec in classes for name in (spec["name"], spec["label"])}
    for candidate in (written, _NUMBERED.sub("", written.strip())):
        if folded(candidate) in known:
            return known[folded(candidate)]
    bare = _NUMBERED.sub("", written.strip())
    names = {spec["label"]: spec["name"] for spec in classes}
    raise unknown(f"class in {where}:", bare, [*names, *(n for n in names.values() if n not in names)])


def level_of(recipe: Recipe, name: str) -> LevelSpec:
    """The recipe's level called `name`.

    Raises
    ------
    PathUpError
        The recipe has no such level.
    """
    for level in recipe.tiles.levels:
        if level.name == name:
            return level
    raise unknown("level", name, recipe.level_names)


def prompt_text(recipe: Recipe, label: str, level: str) -> str:
    """The prompt of class `label` at `level`: the paper's c_s.

    Raises
    ------
    PathUpError
        The recipe has no such class or level.
    """
    names = {spec.label: spec.name for spec in recipe.classes}
    if label not in names:
        raise unknown("label", label, names)
    return filled_prompt(recipe.model.prompt, names[label], level_of(recipe, level).word)


def filled_prompt(template: str, name: str, word: str) -> str:
    """A prompt's template with ``{name}`` and ``{word}`` filled in; any other braces are text."""
    return template.replace("{name}", name).replace("{word}", word)


def all_prompts(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Every (label, level, prompt), class by class and within a class level by level: the anchors' order."""
    return [
        (label, level, prompt_text(recipe, label, level)) for label in recipe.labels for level in recipe.level_names
    ]
