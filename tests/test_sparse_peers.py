"""The published loops that are timed do what the reference says, and their table and files say what was found."""

import pytest
import torch
from torch import nn

from benchmarks.sparse_naive import Hessian, RowNorms, naive_sparsify
from tests import sparse_reference as reference
from tests.tiny import tiny_model, tiny_tokens

# Divisible by 8, so that 4:8 fits every matrix.
SIZES = {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}


def linears(model):
    return {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in p}


@pytest.mark.parametrize("variant", ["llama-gqa-tied", "qwen2-biases"])
@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8)])
def test_the_loop_of_wanda_is_wanda(pattern, variant):
    model, tokens = tiny_model(variant, **SIZES), tiny_tokens()
    counts = {path: linear.weight.numel() // 2 for path, linear in linears(model).items()}
    dense = {path: linear.weight.detach().clone() for path, linear in linears(model).items()}
    statistics = naive_sparsify(pruned := tiny_model(variant, **SIZES), tokens, RowNorms, 0.5, pattern)
    removed = {path: linear.weight == 0 for path, linear in linears(pruned).items()}
    found = reference.prune(
        model, tokens.split(2), reference.wanda(), "two-pass", counts=counts, pattern=pattern, follow=removed
    )
    assert statistics.keys() == found.removed.keys() == counts.keys()
    for path in counts:
        assert removed[path].sum() == counts[path]
        assert not (removed[path] != found.removed[path])[found.margin[path] > 1e-5].any(), path
        assert torch.equal(linears(pruned)[path].weight, dense[path].masked_fill(removed[path], 0))


@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8)])
def test_the_loop_of_sparsegpt_is_sparsegpt(pattern, monkeypatch):
    monkeypatch.setattr(Hessian, "block", 32)
    model, tokens = tiny_model(**SIZES), tiny_tokens()
    naive_sparsify(pruned := tiny_model(**SIZES), tokens, Hessian, 0.5, pattern)
    removed = {path: linear.weight == 0 for path, linear in linears(pruned).items()}
    counts = {path: linear.weight.numel() // 2 for path, linear in linears(model).items()}
    rule = reference.sparsegpt(block=32)
    found = reference.prune(model, tokens.split(2), rule, "two-pass", counts=counts, pattern=pattern, follow=removed)
    for path, linear in linears(pruned).items():
        # Where nothing is asked of groups, the published threshold takes one weight more from every block.
        blocks = 0 if pattern else -(-linear.weight.shape[1] // 32)
        assert removed[path].sum() == counts[path] + blocks
        differ = removed[path] != found.removed[path]
        assert differ.sum() <= 2 * blocks
        assert not differ[found.margin[path] > 1e-2].any(), path
        torch.testing.assert_close(linear.weight.double(), found.weights[path], rtol=1e-3, atol=1e-5)
