"""What can be removed from a model: its units, the slices that go with each, and the inputs they read.

This is the only package that knows model families. Everything after it works on :class:`Structure`.
"""

from pruneengine.structure.families import FAMILIES, Family, auto_class
from pruneengine.structure.finder import find_groups, get_linear, text_config
from pruneengine.structure.fingerprint import model_fingerprint
from pruneengine.structure.values import KINDS, Group, Member, Site, Structure, distinct_linears, unit_slices

__all__ = [
    "FAMILIES",
    "KINDS",
    "Family",
    "Group",
    "Member",
    "Site",
    "Structure",
    "auto_class",
    "distinct_linears",
    "find_groups",
    "get_linear",
    "model_fingerprint",
    "text_config",
    "unit_slices",
]
