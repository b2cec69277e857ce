"""Public ops: one function each, which checks its arguments and runs on the backend for their device.

Backends: ``cuda`` and ``cpp`` (the compiled extension), ``triton`` and ``reference`` (plain PyTorch, the specification
in :mod:`reference`). On CUDA tensors the order is cuda, triton, reference; on CPU tensors cpp, reference;
``use_backend`` forces one. Every op is also ``torch.ops.pruneengine.<name>`` with a fake implementation, so that
``torch.compile`` keeps it whole. No op is differentiable: arguments are detached. NaN is not
checked for.

Sums are accumulated in float32 (``block_moments`` in float64), in an order that follows from the shapes alone. So a
second run gives the same bits, and in C++ so does another number of threads. Exceptions are in the docstrings.
"""

from pruneengine.ops.activations import activation_stats, gate_scores
from pruneengine.ops.backends import available_backends, use_backend
from pruneengine.ops.gathers import compact_bytes, compact_layer, gather_columns, gather_rows
from pruneengine.ops.reference import MOMENTS, histogram_edges
from pruneengine.ops.selection import kth_value, kth_value_global, select_mask, select_mask_global
from pruneengine.ops.sparsity import masked_copy, nm_apply, nm_mask, quantile_codes
from pruneengine.ops.weights import block_moments, taylor_scores, taylor_scores_outer, weight_scores

__all__ = [
    "MOMENTS",
    "activation_stats",
    "available_backends",
    "block_moments",
    "compact_bytes",
    "compact_layer",
    "gate_scores",
    "gather_columns",
    "gather_rows",
    "histogram_edges",
    "kth_value",
    "kth_value_global",
    "masked_copy",
    "nm_apply",
    "nm_mask",
    "quantile_codes",
    "select_mask",
    "select_mask_global",
    "taylor_scores",
    "taylor_scores_outer",
    "use_backend",
    "weight_scores",
]
