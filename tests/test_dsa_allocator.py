"""From an allocation function, or a name, to the levels that a search tries."""

import pytest

import pruneengine as pe
from pruneengine.search.dsa.allocator import Allocator
from pruneengine.sparse.functions.function import PUBLISHED, Function
from pruneengine.sparse.matrices import find_matrices
from tests.tiny import tiny_model, tiny_tokens


def allocator():
    model = tiny_model()
    structure = pe.find_groups(model)
    matrices = find_matrices(model, structure)
    statistics = pe.calibrate(model, tiny_tokens(), ("squares",), structure=structure)
    return Allocator(model, matrices, statistics, pe.SparseConfig(sparsity=0.5)), matrices, (model, statistics)


def test_functions_that_differ_in_scale_alone_share_their_levels():
    made, matrices, _ = allocator()
    mean, total = (made.of_function(Function((), reduce)) for reduce in ("mean", "l1"))
    assert mean.levels == total.levels
    assert sum(mean.levels) == 384
    assert mean.by_layer(matrices) == pytest.approx([level / 256 for level in mean.levels], abs=1 / 256)
    assert made.of_function(Function((), "mean", sign=-1)).levels != mean.levels


def test_a_function_that_tells_nothing_apart_is_refused():
    made, _, _ = allocator()
    with pytest.raises(ValueError, match="do not tell the layers apart"):
        made.of_function(Function(("softmax",), "mean"))


def test_fixed_allocations_by_name():
    made, matrices, (model, statistics) = allocator()
    assert made.named(model, "uniform", statistics).levels == (128,) * 3
    published = made.named(model, "dsa", statistics)
    assert str(PUBLISHED) in published.words
    assert sum(published.by_layer(matrices)) / 3 == pytest.approx(0.5)
