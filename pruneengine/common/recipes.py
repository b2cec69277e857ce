"""Recipes in YAML: sections, reading, and writing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneengine.common.errors import InputError
from pruneengine.common.optional_imports import require_extra

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Sections of the recipes that checkpoints carry, and the job whose options each section holds.
RECIPES = {"config": "prune", "sparse": "sparse prune", "search": "search"}

# PyYAML follows YAML 1.1, where a power needs a dot before it and a sign in it: 1e-4 would be a string.
_POWER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def read_recipe(path: str | Path, section: str = "config") -> dict[str, Any]:
    """Return the options in a YAML recipe: its keys, or the keys under ``section`` in the recipe of a checkpoint.

    Raises:
        ValueError: a file that cannot be read as a recipe, or the recipe of another section's job.
    """
    content = read_keys(path)
    sections = [name for name in RECIPES if name in content]
    if sections and section not in sections:
        raise InputError(f"{path}: holds the recipe of a {RECIPES[sections[0]]}, expected that of a {RECIPES[section]}")
    values = content.get(section, content)
    if not isinstance(values, dict):
        raise InputError(f"{path}: {section} holds {type(values).__name__}, expected keys and values")
    return values


def read_keys(path: str | Path) -> dict[str, Any]:
    """Return the values of a YAML file of keys and values; ValueError for any other file."""
    try:
        content = read_yaml(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a recipe ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe holds keys and values, got {type(content).__name__}")
    return content


def plain_values(config: DataclassInstance) -> dict[str, Any]:
    """Return the fields of a config as a recipe holds them: tuples as lists, inherited fields after its own."""
    bases = type(config).__mro__[1:]
    inherited = {field.name for base in bases if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)}
    values = dataclasses.asdict(config)
    ordered = sorted(values, key=lambda name: name in inherited)
    return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in ordered}


def read_yaml(text: str) -> Any:
    """Return the values in a YAML text; ValueError if it is no YAML, ImportError without the extra "cli"."""
    with require_extra("cli"):
        import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise InputError(" ".join(str(error).split())) from None


def write_yaml(values: Mapping[str, Any]) -> str:
    """Return keys and values in their order as YAML; ImportError without the extra "cli"."""
    with require_extra("cli"):
        import yaml
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
