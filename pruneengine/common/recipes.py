"""Recipes as text: YAML, in which ``1e-4`` is a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruneengine.common.optional_imports import require_extra

# PyYAML follows YAML 1.1, where a power needs a dot before it and a sign in it: 1e-4 would be a string.
_POWER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def read_yaml(text: str) -> Any:
    """The values that a text holds; ValueError where it is no YAML, ImportError without the extra "cli"."""
    with require_extra("cli"):
        import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def write_yaml(values: Mapping[str, Any]) -> str:
    """Keys and values in their order; ImportError without the extra "cli"."""
    with require_extra("cli"):
        import yaml
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


# Sections of the recipes that checkpoints carry, and whose options they hold.
RECIPES = {"config": "prune", "sparse": "sparse prune", "search": "search"}


def read_recipe(path: str | Path, section: str = "config") -> dict[str, Any]:
    """The options in a YAML recipe: its keys, or those under ``section`` in the recipe that a checkpoint carries."""
    content = read_keys(path)
    held = [name for name in RECIPES if name in content]
    if held and section not in held:
        raise ValueError(f"{path}: holds the recipe of a {RECIPES[held[0]]}, expected that of a {RECIPES[section]}")
    return content.get(section, content)


def read_keys(path: str | Path) -> dict[str, Any]:
    """What a YAML file of keys and values holds; ValueError for anything else."""
    try:
        content = read_yaml(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a recipe ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe holds keys and values, got {type(content).__name__}")
    return content
