"""Fingerprint of a model: a short hash that statistics, plans and journals are tied to."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from pruneengine.model.checks import check_prunable
from pruneengine.ops.bits import as_integers


def model_fingerprint(model: nn.Module) -> str:
    """Return a short hash of architecture, shapes and weights: equal for equal models, on any device and thread count.

    Every tensor enters with the sum of all its bit patterns as whole numbers (exact in any order) and a sample of its
    values: one read of the weights, and no copy.
    """
    check_prunable(model)
    digest = hashlib.sha256(str(getattr(model.config, "model_type", "")).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        bits = as_integers(parameter.detach().reshape(-1))
        # In pieces: a sum in int64 makes a copy in int64 first.
        total = sum(piece.sum(dtype=torch.int64) for piece in bits.split(1 << 20))
        digest.update(str(int(total)).encode())
        digest.update(bits[:: -(-bits.numel() // 4096)].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
