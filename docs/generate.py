"""Write docs/commands.md and docs/recipes.md from the commands and the recipe's schema.

``make docs`` runs it; tests/test_docs.py fails when the two pages are not what it would write.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo

from pathup import storage
from pathup.cli.main import VERBS, LazyGroup
from pathup.recipes import Recipe, load_recipe, shipped_recipes

FOLDER = Path(__file__).resolve().parent
HEAD = "<!-- Written by docs/generate.py (make docs); edit the code's own descriptions instead. -->\n\n"

UNITS = {  # by the end of a field's name; the longest that fits counts
    "_px": "px",
    "mpp": "µm/px",
    "_latent": "latent positions",
    "steps": "steps",
    "_every": "steps",
    "adversarial_start": "steps",
    "freeze_encoder_at": "steps",
    "noise.steps": "timesteps",
    "sampling.steps": "timesteps",
    "autoencoder.batch_size": "crops",
    "diffusion.batch_size": "tiles",
    "encoder.batch_size": "tiles",
    "encoder.channels": "channels",
    "_share": "share, 0 to 1",
    "encode_batch": "tiles",
    "window_batch": "windows",
    "max_per_class": "tiles",
    "channels": "channels",
    "max_tokens": "tokens",
    "hidden_size": "channels",
    "min_tissue": "share, 0 to 1",
    "min_inside": "share, 0 to 1",
    "splits": "shares, sum 1",
    "strength": "share, 0 to 1",
    "prompt_dropout": "share, 0 to 1",
}


# -- recipes -------------------------------------------------------------------------------------------------


def recipe_fields(model: type[BaseModel] = Recipe, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of the recipe by its dotted name, a section before its fields; ``[]`` marks a list."""
    for name, field in model.model_fields.items():
        inner, many = section_of(field.annotation)
        place = f"{above}{name}{'[]' if many else ''}"
        yield place, field
        if inner is not None:
            yield from recipe_fields(inner, f"{place}.")


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The nested section that a field holds, if any, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is list:
        return section_of(get_args(annotation)[0])[0], section_of(get_args(annotation)[0])[0] is not None
    return None, False


def recipes_page() -> str:
    """docs/recipes.md."""
    shipped = ", ".join(f"`{name}`" for name in shipped_recipes())
    lines = [
        "# Recipes",
        "",
        "A recipe is a YAML file that holds every number of an experiment. `--recipe` takes the name of a shipped one",
        f"({shipped}) or a file; start from a copy of one in `src/pathup/recipes/`.",
        "An unknown key is an error that names the nearest known one. Every run writes its recipe, with every default",
        "filled in, as `recipe.yaml` into its folder.",
        "",
        "Lengths end in their unit: `_px` are image pixels, `_latent` are positions of the latent (image pixels",
        f"divided by the autoencoder's factor: {_factors()}), mpp is micrometres per pixel.",
    ]
    tables: dict[str, list[str]] = {}
    for place, field in recipe_fields():
        section, _, name = place.rpartition(".")
        inner, _ = section_of(field.annotation)
        told = field.description or ""
        if inner is not None:
            told += f"; see [{place}](#{_anchor(place)})"
        row = f"| `{name}` | {_kind(field)} | {_unit(place)} | {_default(field)} | {told} |"
        tables.setdefault(section, []).append(row.replace("  ", " "))
    for section, rows in tables.items():
        lines += ["", f"## {section or 'The recipe'}", ""]
        lines += ["| field | type | unit | default | meaning |", "|---|---|---|---|---|"]
        lines += rows
    return HEAD + "\n".join(lines) + "\n"


def _factors() -> str:
    by_factor: dict[int, list[str]] = {}
    for name in shipped_recipes():
        by_factor.setdefault(load_recipe(name).autoencoder.factor, []).append(f"`{name}`")
    return ", ".join(f"{factor} in {' and '.join(names)}" for factor, names in sorted(by_factor.items()))


def _anchor(place: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", place.lower()).replace(" ", "-")


def _unit(place: str) -> str:
    fitting = [end for end in UNITS if place.endswith(end)]
    return UNITS[max(fitting, key=len)] if fitting else ""


def _kind(field: FieldInfo) -> str:
    kind = _type_name(field.annotation)
    limits = [
        f"{sign} {getattr(item, attribute):g}"
        for item in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(item, attribute, None) is not None
    ]
    return f"{kind}, {', '.join(limits)}" if limits else kind


def _type_name(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join("unset" if part is NoneType else _type_name(part) for part in inner)
    if origin is list:
        return "list" if section_of(kind)[1] else f"list of {_type_name(inner[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    if isinstance(kind, type) and issubclass(kind, Path):
        return "path"
    return {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}[kind.__name__]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


# -- commands ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command, as its function declares it."""

    names: list[str]  # an argument has one, without dashes
    kind: str
    default: str
    meaning: str

    @property
    def is_option(self) -> bool:
        """Whether it is called by a name."""
        return self.names[0].startswith("-")


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command by the words that call it, and its function: ``tiles``, ``train diffusion``."""
    for verb in LazyGroup().list_commands(None):
        module = importlib.import_module(f"pathup.cli.{verb}")
        app = getattr(module, "app", None)
        if not isinstance(app, typer.Typer):
            yield verb, getattr(module, verb)
            continue
        for info in app.registered_commands:
            if info.callback is not None:
                yield f"{verb} {info.name or info.callback.__name__.replace('_', '-')}", info.callback


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """A command's arguments and options, arguments first."""
    hints = get_type_hints(function, include_extras=True)
    found = [_parameter(own, hints[own.name]) for own in inspect.signature(function).parameters.values()]
    return sorted(found, key=lambda parameter: parameter.is_option)


def _parameter(own: inspect.Parameter, hint: Any) -> Parameter:
    plain, info = get_args(hint)
    kind = " or ".join(part for part in _type_name(plain).split(" or ") if part != "unset")
    told = info.help or ""
    stated = re.search(r"\s*\[default: ([^\]]*)\]", told)  # where the help itself says what happens without it
    if isinstance(info, ArgumentInfo):
        return Parameter([info.metavar or own.name.upper()], kind, _without(own), told)
    dashed = own.name.replace("_", "-")
    declared = [info.default, *(info.param_decls or ())]  # in Annotated, Typer's first value is a name
    names = [name for text in declared if isinstance(text, str) for name in text.split("/")]
    names = names or ([f"--{dashed}", f"--no-{dashed}"] if kind == "true or false" else [f"--{dashed}"])
    if not any(name.startswith("--") for name in names):
        names.insert(0, f"--{dashed}")
    default = stated[1] if stated else _without(own)
    if kind == "true or false":
        kind = ""
        default = default if stated else "" if len(names) == 1 else f"`{names[0 if own.default else 1]}`"
    return Parameter(names, kind, default, told.replace(stated[0], "") if stated else told)


def _without(own: inspect.Parameter) -> str:
    if own.default is inspect.Parameter.empty:
        return "required"
    return "" if own.default is None else f"`{own.default}`"


def commands_page() -> str:
    """docs/commands.md."""
    verbs = LazyGroup().list_commands(None)
    lines = [
        "# Commands",
        "",
        "`pathup --help` lists the verbs, `pathup VERB --help` tells more about each, `pathup --version` the version.",
        "A mistake ends with one sentence on stderr and exit code 1, Ctrl-C with 130; nothing half-written is left.",
        "An option or argument that is missing, unknown or of a wrong type ends with the usage and exit code 2.",
        "`python -m pathup` is the same as `pathup`.",
        "",
        "| verb | what it does |",
        "|---|---|",
        *(f"| `{verb}` | {line} |" for verb, line in VERBS.items() if verb in verbs),
    ]
    for words, function in commands():
        found = parameters(function)
        called = " ".join(["pathup", words, *(p.names[0] for p in found if not p.is_option), "[OPTIONS]"])
        lines += ["", f"## {words}", "", f"`{called}`", ""]
        lines += [" ".join(part.split()) + "\n" for part in (function.__doc__ or "").strip().split("\n\n")]
        lines += ["| argument or option | value | default | meaning |", "|---|---|---|---|"]
        for parameter in found:
            names = ", ".join(f"`{name}`" for name in parameter.names)
            meaning = parameter.meaning.replace("|", "\\|")
            lines.append(f"| {names} | {parameter.kind} | {parameter.default} | {meaning} |")
    return HEAD + "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """What should stand in the generated pages."""
    return {FOLDER / "commands.md": commands_page(), FOLDER / "recipes.md": recipes_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        storage.write_text(path, text)
        print(f"wrote {path.relative_to(FOLDER.parent)}", file=sys.stderr)
