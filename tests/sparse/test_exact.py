"""The engine's sparse methods against the slow float64 reference: the same masks but for ties, and exact counts."""

import pytest
import torch
from torch import nn

import pruneengine
from tests.helpers import sparse_reference as reference
from tests.helpers.tiny import tiny_model, tiny_tokens

engine = pytest.mark.skipif(not hasattr(pruneengine, "sparsify"), reason="no pruneengine.sparsify")

# Divisible by 8, so that 4:8 fits every matrix; blocks of 24 columns divide none of them.
SIZES = {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
VARIANTS = {"llama-gqa-tied": SIZES, "llama-mha-untied": SIZES | {"num_key_value_heads": 4}}
MODES = ("sequential", "two-pass", "one-shot")
PATTERNS = {"50%": ("unstructured", 0.5), "37%": ("unstructured", 0.37), "2:4": ("2:4", 0.5), "4:8": ("4:8", 0.5)}
BLOCK = 24
RULES = {
    "wanda": (reference.wanda("row"), {}),
    "wanda matrix": (reference.wanda("matrix"), {"compare": "matrix"}),
    "magnitude": (reference.magnitude("matrix"), {}),
    "magnitude row": (reference.magnitude("row"), {"compare": "row"}),
    "sparsegpt": (reference.sparsegpt(block=BLOCK), {"block": BLOCK}),
}
# Of a score's distance to its threshold, relative. Scores of SparseGPT go through a float32 inverse.
TIE = {"wanda": 1e-5, "magnitude": 1e-5, "sparsegpt": 1e-4}


def linears(model):
    return {p: m.weight.detach() for p, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in p}


def sparsified(variant, method, pattern, sparsity, batches, **options):
    model = tiny_model(variant, **VARIANTS[variant])
    pruneengine.sparsify(
        model, batches, pruneengine.SparseConfig(method=method, sparsity=sparsity, pattern=pattern, **options)
    )
    return linears(model)


def compare(rule_name, variant, pattern_name, mode, **changes):
    """Prune with both; the reference goes on with the engine's masks, so that one tie does not change what follows."""
    method = rule_name.split()[0]
    (rule, options), (pattern, sparsity) = RULES[rule_name], PATTERNS[pattern_name]
    batches = list(tiny_tokens(samples=6).split(4))
    weights = sparsified(variant, method, pattern, sparsity, batches, mode=mode, **(options | changes))
    removed = {path: weight == 0 for path, weight in weights.items()}
    counts = {path: int(mask.sum()) for path, mask in removed.items()}
    assert sum(counts.values()) == round(sparsity * sum(mask.numel() for mask in removed.values()))
    for path, mask in removed.items():
        assert abs(counts[path] - sparsity * mask.numel()) < 1, path
    kept = None if pattern == "unstructured" else tuple(map(int, pattern.split(":")))
    expected = reference.prune(
        tiny_model(variant, **VARIANTS[variant]), batches, rule, mode, counts=counts, pattern=kept, follow=removed
    )
    assert expected.removed.keys() == removed.keys()
    for path, mask in removed.items():
        differ = mask != expected.removed[path]
        assert not differ[expected.margin[path] > TIE[method]].any(), (path, expected.margin[path][differ])
        assert differ.sum() <= 4, path
        torch.testing.assert_close(weights[path].double(), expected.weights[path], rtol=1e-4, atol=1e-5, msg=path)


@engine
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("variant", "pattern"),
    [*(("llama-gqa-tied", pattern) for pattern in PATTERNS), ("llama-mha-untied", "37%"), ("llama-mha-untied", "4:8")],
)
@pytest.mark.parametrize("rule", ["wanda", "sparsegpt"])
def test_masks_and_weights_are_the_references(rule, variant, pattern, mode):
    compare(rule, variant, pattern, mode)


@engine
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rule", ["magnitude", "magnitude row", "wanda matrix"])
def test_other_comparisons(rule, pattern):
    # Within groups nothing else is compared.
    changes = {"compare": None} if ":" in pattern else {}
    compare(rule, "llama-gqa-tied", pattern, "two-pass", **changes)


@engine
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_batches_do_not_change_the_choice(method):
    tokens = tiny_tokens(samples=6)
    found = [
        sparsified("llama-gqa-tied", method, "unstructured", 0.5, list(tokens.split(size)), batch_size=size)
        for size in (1, 6)
    ]
    for path, weight in found[0].items():
        assert ((weight == 0) != (found[1][path] == 0)).sum() <= 2, path


def dead_inputs(model):
    """Channels 3 and 40 never carry anything into attention."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[[3, 40]] = 0
    return model


@engine
@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_weights_on_dead_inputs_go_first(method, pattern):
    structure, sparsity = PATTERNS[pattern]
    model, batches = dead_inputs(tiny_model(**SIZES)), [tiny_tokens()]
    pruneengine.sparsify(
        model, batches, pruneengine.SparseConfig(method=method, sparsity=sparsity, pattern=structure, mode="two-pass")
    )
    removed = {path: weight == 0 for path, weight in linears(model).items()}
    rule = reference.wanda() if method == "wanda" else reference.sparsegpt()
    expected = reference.prune(
        dead_inputs(tiny_model(**SIZES)), batches, rule, "two-pass", follow=removed,
        counts={path: mask.numel() // 2 for path, mask in removed.items()},
        pattern=(2, 4) if pattern == "2:4" else None,
    )  # fmt: skip
    for path, weight in linears(model).items():
        assert removed[path].sum() == removed[path].numel() // 2
        if "q_proj" in path:
            assert removed[path][:, [3, 40]].all()
        torch.testing.assert_close(weight.double(), expected.weights[path], rtol=1e-4, atol=1e-5, msg=path)


def a_matrix(rows=5, columns=24, count=0, follow=None, pattern=None):
    generator = torch.Generator().manual_seed(0)
    weight, inputs, mixing = (
        torch.randn(n, columns, generator=generator, dtype=torch.float64) for n in (rows, 60, columns)
    )
    return reference.Matrix(weight, inputs @ mixing, 3, count, pattern, follow)


def test_the_reference_compensates_as_the_exact_inverse_says():
    """Removing the first column alone is one step of Optimal Brain Surgeon: the least squares of what is left."""
    follow = torch.zeros(5, 24, dtype=torch.bool)
    follow[:, 0] = True
    matrix = a_matrix(follow=follow)
    _, _, weight = reference.sparsegpt(damp=1e-12)(matrix)
    target = matrix.inputs @ matrix.weight.T
    best = torch.linalg.lstsq(matrix.inputs[:, 1:], target).solution.T
    torch.testing.assert_close(weight[:, 1:], best)
    assert (weight[:, 0] == 0).all()


@pytest.mark.parametrize("block", [4, 7, 24])
def test_the_reference_keeps_its_counts_and_compensates(block):
    matrix = a_matrix(count=53)
    removed, _, weight = reference.sparsegpt(block=block)(matrix)
    assert removed.sum() == (weight == 0).sum() == 53
    uncompensated = matrix.weight.masked_fill(removed, 0)
    wrong, worse = ((matrix.inputs @ (w - matrix.weight).T).norm() for w in (weight, uncompensated))
    assert wrong < worse


def test_the_reference_marks_ties():
    scores = torch.tensor([[4.0, 1.0, 2.0, 2.0, 8.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    removed, margin = reference.smallest(scores, [2, 0])
    assert removed.tolist() == [[False, True, True, False, False], [False] * 5]
    assert margin[0].tolist() == [1, 0.5, 0, 0, 3]
    assert margin[1].isinf().all()
    assert reference.row_counts(11, 4) == [3, 3, 3, 2]
    assert sum(reference.block_count(53, i, min(i + 7, 24), 24) for i in range(0, 24, 7)) == 53
