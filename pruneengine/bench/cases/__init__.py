"""The cases of every op; importing this registers them in :data:`pruneengine.bench.case.CASES`."""

from pruneengine.bench.case import CASES
from pruneengine.bench.cases import activations, gathers, selection, sparsity, weights

__all__ = ["CASES", "activations", "gathers", "selection", "sparsity", "weights"]
