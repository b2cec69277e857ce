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

# The longest recipe of ours has one value for each matrix of a model.
MOST_VALUES = 1_000_000

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
    """Return the values in a YAML text.

    Raises:
        ValueError: no YAML, or aliases that stand for themselves or for more than :data:`MOST_VALUES` values.
        ImportError: the extra "cli" is missing.
    """
    with require_extra("cli"):
        import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+0123456789"))
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise InputError("values nested too deeply") from None
    except yaml.YAMLError as error:
        raise InputError(" ".join(str(error).split())) from None


def _check_size(node: Any, sizes: dict[int, int | None]) -> int:
    """Return the number of values that a YAML node stands for, aliases written out; ValueError for too many.

    A few lines of aliases of aliases stand for billions of values, on which whatever goes through them would hang.

    Args:
        node: of PyYAML.
        sizes: by the identity of a node, None for one that is being counted.
    """
    if id(node) not in sizes:
        sizes[id(node)] = None
        inner = node.value if isinstance(node.value, list) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_check_size(part, sizes) for part in parts)
    size = sizes[id(node)]
    if size is None:
        raise InputError("an alias stands for a value that holds it")
    if size > MOST_VALUES:
        raise InputError(f"aliases stand for more than {MOST_VALUES:,} values")
    return size


def write_yaml(values: Mapping[str, Any]) -> str:
    """Return keys and values in their order as YAML; ImportError without the extra "cli"."""
    with require_extra("cli"):
        import yaml
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
