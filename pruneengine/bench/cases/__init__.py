"""Cases of every op; importing this registers them in :data:`pruneengine.bench.case.CASES`."""

from pruneengine.bench.case import CASES

# isort: off
# The order of a run: where time is short, the sums over weights are the ones to have.
from pruneengine.bench.cases import weights
from pruneengine.bench.cases import activations, gathers, selection, sparsity

# isort: on

__all__ = ["CASES", "activations", "gathers", "selection", "sparsity", "weights"]
