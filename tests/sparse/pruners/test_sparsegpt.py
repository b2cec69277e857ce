"""SparseGPT's steps by themselves: the factor, its damping, and columns pruned and made up for."""

import pytest
import torch

from pruneengine.sparse.pruners.input_sums import Hessian
from pruneengine.sparse.pruners.sparsegpt import STRONGEST_DAMPING, Share, inverse_factor, prune_columns


def test_a_hessian_that_no_damping_helps():
    hessian = torch.tensor([[1.0, 30.0], [30.0, 1.0]])
    with pytest.raises(
        ValueError, match=f"no Cholesky factor of the Hessian, up to a damping of {STRONGEST_DAMPING:g}"
    ):
        inverse_factor(hessian, 0.01)


@pytest.mark.parametrize("size", [7, 301])
def test_the_factor_is_that_of_the_inverse(size):
    x = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(0))
    hessian = x.T @ x
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(size)
    factor, damp = inverse_factor(hessian, 0.01)
    assert damp == 0.01
    assert not factor.tril(-1).any()
    expected = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    torch.testing.assert_close(factor, expected.float(), rtol=1e-3, atol=1e-5)


def test_weights_on_dead_inputs_go_first_and_no_more_than_asked():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 40, 8, generator=generator), torch.randn(6, 8, generator=generator) + 3
    x[..., 2] = 0
    hessian = Hessian()
    hessian.add(x)
    sums = hessian.matrix("it")
    dead = sums.diagonal() == 0
    sums.diagonal().masked_fill_(dead, 1)
    factor, _ = inverse_factor(sums, 0.01)
    for count in (4, 6, 9):
        columns = weight.T.contiguous()
        prune_columns(columns, factor, dead, [Share(slice(0, 6), count, None)], 8, None)
        assert int((columns == 0).sum()) == count
        assert int((columns[2] == 0).sum()) == min(count, 6)
    torch.testing.assert_close(columns[2][columns[2] != 0], weight[:, 2][columns[2] != 0])


@pytest.mark.parametrize("pattern", [None, 4])
def test_stacked_linears_are_pruned_as_alone(pattern):
    """And with an error no greater than that of the same zeros without making up for them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 100, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    weights = [torch.randn(rows, 40, generator=generator) for rows in (9, 5)]
    kept, counts = (1, 3), (250, 100)
    hessian = Hessian()
    hessian.add(x)
    factor, _ = inverse_factor(hessian.matrix("it"), 0.01)
    dead = torch.zeros(40, dtype=torch.bool)

    def pruned(chosen):
        columns = torch.cat([weights[i] for i in chosen]).T.contiguous()
        shares, start = [], 0
        for i in chosen:
            rows = slice(start, start + len(weights[i]))
            shares.append(Share(rows, counts[i], kept[i] if pattern else None))
            start = rows.stop
        prune_columns(columns, factor, dead, shares, 12, pattern)
        return [columns[:, share.rows].T for share in shares]

    together = pruned((0, 1))
    for i, weight in enumerate(weights):
        torch.testing.assert_close(together[i], pruned((i,))[0], rtol=1e-4, atol=1e-5)
        zeroed = weight.masked_fill(together[i] == 0, 0)
        with_update, without = ((x @ (w - weight).T).square().sum() for w in (together[i], zeroed))
        assert with_update < 0.8 * without
