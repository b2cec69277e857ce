"""A tiny model whose layers differ in their scores, its matrices and their scores in full."""

import numpy as np
import torch

from pruneengine.calibration.calibrate import calibrate
from pruneengine.model import find_groups, get_linear
from pruneengine.sparse.matrices import find_matrices
from tests.helpers.tiny import tiny_model, tiny_tokens


def uneven_model(dtype=torch.float32):
    """Return a model whose layers differ in their scores, so that no allocation is uniform by chance."""
    model = tiny_model(dtype=dtype)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            heavy = torch.rand_like(layer.mlp.up_proj.weight, dtype=torch.float32) < 0.01 * (1 + 2 * index)
            layer.mlp.up_proj.weight.mul_(torch.where(heavy, 30.0, 1.0 + index).to(dtype))
    return model


MODEL = uneven_model()
STRUCTURE = find_groups(MODEL)
MATRICES = find_matrices(MODEL, STRUCTURE)
STATISTICS = calibrate(MODEL, tiny_tokens(), ("squares",))
# One linear is out, so that layers differ in size.
UNEQUAL = find_matrices(MODEL, STRUCTURE, ("layers.1.mlp.down_proj",))


def scores_of(matrix, statistics=STATISTICS, model=MODEL):
    weight = get_linear(model, matrix.name).weight.detach().float().abs()
    if statistics is None:
        return weight.flatten()
    norm = statistics.get("squares", matrix.site).mean(0).sqrt()
    return (weight * norm).flatten()


def mean_of(sparsities, matrices=MATRICES):
    sizes = np.array([matrix.numel for matrix in matrices], dtype=np.float64)
    return float(np.array([sparsities[matrix.name] for matrix in matrices]) @ sizes / sizes.sum())
