"""Mixtures of experts with linears per expert, in place of one parameter for all experts of a layer."""

from __future__ import annotations

import re

from torch import nn

from pruneengine.common.optional_imports import require_extra
from pruneengine.model import Family, family_of
from pruneengine.model.checks import check_prunable
from pruneengine.model.finder import decoder_layers


def unfuse_experts(model: nn.Module) -> nn.Module:
    """Give every expert of a model its own linears, in place; a model without fused experts stays as it is.

    The model computes the same: each expert sees the tokens that the router sends it, sample by sample as
    ``[b, longest, H]`` with zeros behind the tokens of a sample that has fewer. So groups,
    statistics, masks and adapters work on an expert's linears as on any other, and rows of zeros add nothing to a sum.

    Memory: the model, and the experts of one layer once more.

    Raises:
        ValueError: a family that is not known, or a model that cannot be pruned (:func:`check_prunable`).
    """
    check_prunable(model, weights=False)
    family = family_of(getattr(model.config, "model_type", None), type(model).__name__)
    if family.experts is None:
        return model
    with require_extra("hf"):
        from pruneengine.model.modeling_pruned import unfuse
    for layer in decoder_layers(model, family):
        unfuse(layer)
    return model


def plain_name(tensor: str, family: Family) -> str:
    """Return the name that a tensor of a model with unfused experts has where such models are published."""
    for pattern, replacement in family.experts.saved if family.experts else ():
        tensor = re.sub(pattern, replacement, tensor)
    return tensor
