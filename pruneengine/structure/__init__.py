"""What can be removed from a model: its units, the slices that go with each, and the inputs they read.

This is the only package that knows model families. Everything after it works on :class:`Structure`.
"""

from pruneengine.structure.families import FAMILIES, Experts, Family, auto_class, family_of
from pruneengine.structure.finder import find_groups, get_linear, text_config
from pruneengine.structure.fingerprint import model_fingerprint
from pruneengine.structure.values import (
    KINDS,
    Group,
    Member,
    Site,
    Structure,
    distinct_linears,
    expert_of,
    layer_of,
    part_of,
    unit_slices,
)

__all__ = [
    "FAMILIES",
    "KINDS",
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
