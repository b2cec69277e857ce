"""Structure of a model, its layer-by-layer runner, and the only code that changes a model.

:func:`find_groups` turns a model of a known family into a :class:`Structure`: units, their slices, and the inputs of
their linears. Everything after it works on that value.
"""

from pathlib import Path

from pruneengine.model.families import FAMILIES, Experts, Family, auto_class, family_of
from pruneengine.model.finder import find_groups, get_linear
from pruneengine.model.fingerprint import model_fingerprint
from pruneengine.model.structure import (
    KINDS,
    Group,
    Member,
    Site,
    Structure,
    distinct_linears,
    expert_of,
    layer_of,
    part_of,
    text_config,
    unit_slices,
)

# The modelling file that travels with checkpoints whose layers differ in width.
MODELING_FILE = Path(__file__).with_name("modeling_pruned.py")

__all__ = [
    "FAMILIES",
    "KINDS",
    "MODELING_FILE",
    "Experts",
    "Family",
    "Group",
    "Member",
    "Site",
    "Structure",
    "auto_class",
    "distinct_linears",
    "expert_of",
    "family_of",
    "find_groups",
    "get_linear",
    "layer_of",
    "model_fingerprint",
    "part_of",
    "text_config",
    "unit_slices",
]
