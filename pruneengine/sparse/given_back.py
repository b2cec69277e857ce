"""Dense weights, kept while a model is pruned on trial and given back: it never has to be there twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from pruneengine.model import get_linear
from pruneengine.sparse.matrices import Matrix
from pruneengine.structured.apply import set_weight


def keep_weights(model: nn.Module, matrices: Sequence[Matrix]) -> dict[str, Tensor]:
    """Copies of the weights of linears, by module path; in main memory wherever the model is."""
    return {m.name: get_linear(model, m.name).weight.detach().to("cpu", copy=True) for m in matrices}


@contextlib.contextmanager
def given_back(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Within the context the model may be pruned; afterwards, also after an error, it has every bit of these weights.

    Args:
        model: whose linears are written in place.
        weights: of :func:`keep_weights`, of all linears that may be pruned.
    """
    try:
        yield model
    finally:
        for path, weight in weights.items():
            set_weight(get_linear(model, path), weight)
