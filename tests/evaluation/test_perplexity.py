"""Perplexity, paired difference, size and speed on tiny random models."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from pruneengine.data.samples import Samples
from pruneengine.evaluation.perplexity import (
    best_dtype,
    model_size,
    paired_difference,
    perplexity,
)
from pruneengine.evaluation.speed import _greedy, measure_speed, measure_speed_pair

VOCABULARY = 101


def tiny(model_type="llama", seed=0, **changes):
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(options | changes)))
    for parameter in model.parameters():
        # Larger than the usual start: at 0.02 every logit is near 0 and any slip would pass.
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim == 2 else None
    return model.eval()


@pytest.fixture
def samples():
    tokens = torch.randint(VOCABULARY, (5, 17), generator=torch.Generator().manual_seed(1))
    return Samples(tokens, ("random",) * 5)


@torch.no_grad()
def naive_nll(model, tokens):
    logits = model(input_ids=tokens).logits[:, :-1].double()
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 4.0}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ],
)
def test_perplexity_equals_full_logits(model_type, changes, batch_size, samples):
    model = tiny(model_type, **changes)
    result = perplexity(model, samples, batch_size)
    expected = naive_nll(model, samples.tokens)
    torch.testing.assert_close(result.per_window, expected, rtol=1e-5, atol=1e-5)
    assert result.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    assert result.nll == pytest.approx(math.log(result.perplexity))
    assert result.tokens == 5 * 16
    assert result.dtype == "float32"
    assert result.samples == samples.hash
    assert result.seconds > 0


def test_a_plain_tensor_is_as_good_as_samples(samples):
    model = tiny()
    assert perplexity(model, samples.tokens).nll == perplexity(model, samples).nll


def test_training_mode_is_put_back_and_dropout_is_off(samples):
    model = tiny(attention_dropout=0.9).train()
    first, second = perplexity(model, samples), perplexity(model, samples)
    assert model.training
    assert torch.equal(first.per_window, second.per_window)


def test_autocast_computes_and_reports_bfloat16(samples):
    model = tiny()
    exact, cast = perplexity(model, samples), perplexity(model, samples, dtype=torch.bfloat16)
    assert cast.dtype == "bfloat16"
    assert 0 < abs(cast.nll - exact.nll) < 0.05
    own = perplexity(model.to(torch.bfloat16), samples)
    assert own.dtype == "bfloat16"


def test_a_window_that_is_not_finite_is_named(samples):
    model = tiny()
    tokens = samples.tokens.clone()
    tokens[tokens == 7] = 8
    tokens[3, 2] = 7
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(FloatingPointError, match=r"window 3 of 5 \(random\): nll is nan"):
        perplexity(model, Samples(tokens, ("random",) * 5), batch_size=2)


def test_overflowing_perplexity_is_an_error(samples):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    with pytest.raises(FloatingPointError, match="overflows"):
        perplexity(model, samples)


def test_logits_that_are_not_the_heads_are_refused(samples):
    model = tiny()
    whole = model.forward

    def shifted(*args, **kwargs):
        output = whole(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.forward = shifted
    with pytest.raises(ValueError, match="from body and head"):
        perplexity(model, samples)


def test_bad_input_is_named(samples):
    model = tiny()
    with pytest.raises(ValueError, match="batch size 0"):
        perplexity(model, samples, batch_size=0)
    with pytest.raises(ValueError, match="token id 200"):
        perplexity(model, torch.full((1, 4), 200))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        perplexity(model, torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"float32 for a model in torch\.bfloat16"):
        perplexity(tiny().to(torch.bfloat16), samples, dtype=torch.float32)
    with pytest.raises(TypeError, match="Linear"):
        perplexity(torch.nn.Linear(2, 2), samples)
    with pytest.raises(ValueError, match="new_tokens=0"):
        measure_speed(model, new_tokens=0)


def test_paired_difference_is_mean_and_standard_error(samples):
    dense, pruned = perplexity(tiny(), samples), perplexity(tiny(seed=1), samples)
    difference = pruned.per_window - dense.per_window
    mean, error = paired_difference(dense, pruned)
    assert mean == pytest.approx(pruned.nll - dense.nll)
    spread = sum((float(d) - mean) ** 2 for d in difference) / 4
    assert error == pytest.approx(math.sqrt(spread / 5))
    assert paired_difference(dense, dense) == (0.0, 0.0)


def test_paired_difference_refuses_other_windows(samples):
    model = tiny()
    dense = perplexity(model, samples)
    with pytest.raises(ValueError, match="different windows"):
        paired_difference(dense, perplexity(model, samples.tokens.flip(0)))
    one = perplexity(model, samples.tokens[:1])
    with pytest.raises(ValueError, match="1 window"):
        paired_difference(one, one)


@pytest.mark.parametrize(("model_type", "changes"), [("llama", {}), ("gemma2", {"final_logit_softcapping": 2.0})])
def test_greedy_decoding_with_a_cache_equals_full_forwards(model_type, changes, samples):
    model = tiny(model_type, **changes)
    prompt = samples.tokens[:2, :6]
    with torch.no_grad():
        steps = list(_greedy(model, prompt, new_tokens=5))
        assert len(steps) == 6
        ids = prompt
        for logits in steps:
            full = model(input_ids=ids, use_cache=False).logits[:, -1]
            torch.testing.assert_close(logits, full, rtol=1e-4, atol=1e-4)
            ids = torch.cat([ids, full.argmax(-1, keepdim=True)], 1)


def test_speed_counts_every_token_and_runs_in_turn(monkeypatch):
    dense, pruned = tiny(), tiny(seed=1)
    order = []
    warm_up, *runs = (99.0, 99.0), (0.5, 2.0), (1.0, 1.0), (0.25, 4.0)

    def timed(model, prompt, new_tokens):
        assert prompt.shape == (2, 9)
        order.append(model)
        return [warm_up, *runs][order.count(model) - 1]

    monkeypatch.setattr("pruneengine.evaluation.speed._time_once", timed)
    first, second = measure_speed_pair(dense, pruned, prompt_tokens=9, new_tokens=7, repeats=3, batch_size=2)
    assert order == [dense, pruned] * 4
    for result in (first, second):
        assert result.prefill == 2 * 9 / 0.5
        assert result.decode == 2 * 7 / 2.0
        assert (result.prompt_tokens, result.new_tokens, result.repeats) == (9, 7, 3)


def test_measured_speed_is_plausible():
    model = tiny()
    result = measure_speed(model, prompt_tokens=16, new_tokens=4, repeats=2)
    assert 1 < result.decode < result.prefill
    assert (result.dtype, result.device) == ("float32", "cpu")


def test_model_size_counts_tied_parameters_once():
    untied, tied = model_size(tiny(tie_word_embeddings=False)), model_size(tiny(tie_word_embeddings=True))
    assert untied.parameters - tied.parameters == VOCABULARY * 32
    assert tied.bytes == 4 * tied.parameters
    assert model_size(tiny(tie_word_embeddings=True).to(torch.bfloat16)).bytes == 2 * tied.parameters


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 sse", torch.bfloat16),
        ("flags\t\t: fpu amx_bf16", torch.bfloat16),
        ("flags\t\t: fpu avx2 avx512f", torch.float32),
        ("", torch.float32),
    ],
)
def test_best_dtype_follows_the_cpu_flags(flags, dtype, monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda _path: f"processor\t: 0\n{flags}\n")
    assert best_dtype("cpu") == dtype
