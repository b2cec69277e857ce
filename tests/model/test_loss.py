"""The chunked loss against autograd on full logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruneengine.model.loss import IGNORED, logit_options, token_nll, token_nll_backward

N, T, H, V = 2, 13, 24, 61


def setup(dtype=torch.float32, bias=True, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(N, T, H, dtype=dtype)
    head = torch.nn.Linear(H, V, bias=bias, dtype=dtype)
    targets = torch.randint(V, (N, T))
    targets[0, 3] = targets[1, -1] = IGNORED
    return hidden, head, targets


def full_nll(hidden, head, targets, softcap=None, scale=1.0):
    logits = head(hidden) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED).view(N, T)


class LargestTensor(TorchDispatchMode):
    """Recorder of the largest number of elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": 0.25}, {"softcap": 1.5}, {"softcap": 0.7, "scale": 3.0}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_matches_autograd_on_full_logits(dtype, tolerance, options, bias):
    hidden, head, targets = setup(dtype, bias)
    weights = torch.rand(N, T, dtype=dtype)
    leaf = hidden.clone().requires_grad_()
    expected = full_nll(leaf, head, targets, **options)
    (expected * weights).sum().backward()

    nll, gradient = token_nll_backward(hidden, head, targets, weights, chunk=5, **options)
    torch.testing.assert_close(gradient, leaf.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(nll, expected.detach().float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(token_nll(hidden, head, targets, chunk=5, **options), nll, rtol=0, atol=0)
    assert nll.dtype == torch.float32
    assert gradient.dtype == dtype


@pytest.mark.parametrize("chunk", [1, 4, N * T, 1000])
def test_the_chunk_changes_nothing(chunk):
    hidden, head, targets = setup()
    nll, gradient = token_nll_backward(hidden, head, targets, 1 / T)
    chunked_nll, chunked_gradient = token_nll_backward(hidden, head, targets, 1 / T, chunk)
    torch.testing.assert_close(chunked_nll, nll, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(chunked_gradient, gradient, rtol=1e-5, atol=1e-7)


def test_ignored_targets_have_neither_loss_nor_gradient():
    hidden, head, targets = setup()
    nll, gradient = token_nll_backward(hidden, head, targets)
    ignored = targets == IGNORED
    assert (nll[ignored] == 0).all()
    assert (gradient[ignored] == 0).all()
    assert (nll[~ignored] > 0).all()
    assert gradient[~ignored].abs().amax(1).min() > 0


def test_weights_broadcast_over_samples():
    hidden, head, targets = setup()
    _, unit = token_nll_backward(hidden, head, targets)
    per_sample = torch.tensor([[2.0], [-0.5]])
    _, gradient = token_nll_backward(hidden, head, targets, per_sample)
    torch.testing.assert_close(gradient, unit * per_sample[..., None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_softmax(dtype):
    hidden, head, targets = setup()
    half_head = torch.nn.Linear(H, V).to(dtype)
    half_head.load_state_dict({name: value.to(dtype) for name, value in head.state_dict().items()})
    reference = torch.nn.Linear(H, V)
    reference.load_state_dict({name: value.float() for name, value in half_head.state_dict().items()})
    nll, gradient = token_nll_backward(hidden.to(dtype), half_head, targets, 1e-3)
    exact_nll, exact = token_nll_backward(hidden.to(dtype).float(), reference, targets, 1e-3)
    assert gradient.dtype == dtype
    torch.testing.assert_close(nll, exact_nll, rtol=0.02, atol=0.02)
    assert F.cosine_similarity(gradient.float().flatten(), exact.flatten(), dim=0) > 0.9999


def test_extreme_logits_stay_finite():
    hidden, head, targets = setup()
    nll, gradient = token_nll_backward(hidden * 1e4, head, targets)
    assert nll.isfinite().all()
    assert gradient.isfinite().all()
    assert nll.max() > 100


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_full_logits_never_exist(softcap):
    hidden, head, targets = setup()
    chunk = 3
    with LargestTensor() as forward:
        token_nll(hidden, head, targets, chunk, softcap=softcap)
    with LargestTensor() as backward:
        token_nll_backward(hidden, head, targets, 1.0, chunk, softcap=softcap)
    bound = max(chunk * V, head.weight.numel(), hidden.numel())
    assert chunk * V <= forward.elements <= bound < N * T * V
    assert chunk * V <= backward.elements <= bound


def test_default_chunk_bounds_the_logits(monkeypatch):
    monkeypatch.setattr("pruneengine.model.loss.LOGIT_BYTES", 4 * V * 30)
    hidden, head, targets = torch.randn(100, 8), torch.nn.Linear(8, V), torch.randint(V, (100,))
    with LargestTensor() as seen:
        token_nll_backward(hidden, head, targets)
    assert seen.elements == 30 * V


def test_logit_options_read_the_config():
    class Config:
        final_logit_softcapping = 30.0
        logit_scale = 0.5
        logits_scaling = 8.0

    assert logit_options(Config()) == {"softcap": 30.0, "scale": 0.0625}
    assert logit_options(object()) == {"softcap": None, "scale": 1.0}


def test_bad_input_is_named():
    hidden, head, targets = setup()
    with pytest.raises(ValueError, match=r"targets \(2, 12\)"):
        token_nll(hidden, head, targets[:, 1:])
    with pytest.raises(ValueError, match=r"head \(61, 24\)"):
        token_nll_backward(hidden[..., 1:], head, targets)
    with pytest.raises(ValueError, match="chunk=0"):
        token_nll(hidden, head, targets, 0)
    with pytest.raises(ValueError, match="softcap=-1"):
        token_nll(hidden, head, targets, softcap=-1.0)
    with pytest.raises(TypeError, match="Identity"):
        token_nll(hidden, torch.nn.Identity(), targets)
