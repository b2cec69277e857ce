"""From an allocation function, or a name, to the levels that a search tries."""

import pytest

import pruneengine as pe
from pruneengine.search.dsa.allocator import Allocator
from pruneengine.search.dsa.codes import levels_of
from pruneengine.sparse.functions.function import PUBLISHED, Function
from pruneengine.sparse.matrices import find_matrices
from tests.helpers.tiny import tiny_model, tiny_tokens


def allocator(ignore=()):
    model = tiny_model()
    structure = pe.find_groups(model)
    matrices = find_matrices(model, structure, ignore)
    statistics = pe.calibrate(model, tiny_tokens(), ("squares",), structure=structure)
    config = pe.SparseConfig(sparsity=0.5)
    made = Allocator(model, matrices, statistics, config, structure.num_layers)
    return made, matrices, (model, statistics)


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


def test_a_layer_without_matrices_has_level_zero():
    made, matrices, (model, statistics) = allocator(ignore=(r"re:layers\.1\.",))
    found = made.of_function(Function((), "mean"))
    assert found.levels[1] == 0 == found.by_layer(matrices)[1]
    assert sum(found.levels) == 256
    assert found.by_layer(matrices)[::2] == pytest.approx([level / 256 for level in found.levels[::2]], abs=1 / 256)
    assert made.named(model, "uniform", statistics).levels == (128, 0, 128)


def test_fixed_allocations_by_name():
    made, matrices, (model, statistics) = allocator()
    assert made.named(model, "uniform", statistics).levels == (128,) * 3
    published = made.named(model, "dsa", statistics)
    assert str(PUBLISHED) in published.words
    assert sum(published.by_layer(matrices)) / 3 == pytest.approx(0.5)


def test_levels_weigh_layers_by_what_they_may_lose():
    # One matrix of layer 0, of 7 in the others.
    made, matrices, _ = allocator(ignore=(r"re:layers\.0\.(self_attn|mlp\.(gate|up))",))
    sizes = [sum(m.numel for m in matrices if m.layer == layer) for layer in range(3)]
    assert sizes[0] < sizes[1] / 4
    nearer = []
    for spread in (0.05, 0.061, 0.063, 0.074, 0.085, 0.087):
        found = made.of_function(Function((), "mean", spread=spread))
        wanted = sum(found.sparsities[m.name] * m.numel for m in matrices) * 256

        def off(levels, wanted=wanted):
            return abs(sum(level * size for level, size in zip(levels, sizes, strict=True)) - wanted)

        assert off(found.levels) <= max(sizes) / 2
        nearer.append(off(found.levels) < off(levels_of(found.by_layer(matrices), [1] * 3)))
    assert any(nearer)
