"""Each metric against a slow float64 implementation that loops over samples, weights and heads."""

import sys

import pytest
import torch

from pruneengine.calibration.calibrate import calibrate
from pruneengine.model import find_groups
from pruneengine.structured.scores.metrics import METRICS
from pruneengine.structured.scores.score import AGGREGATES, score
from tests.helpers.tiny import tiny_model, tiny_tokens

calibrate_module = sys.modules[calibrate.__module__]
VARIANTS = ("llama-gqa-tied", "llama-mha-untied", "qwen2-biases")
GRADIENT_METRICS = ("vectorize", "param_first", "param_second", "param_mix")


def oracle_gradients(variant, tokens):
    """Per-sample gradients of the mean token loss, by plain autograd in float64: {weight name: [N, R, C]}."""
    model = tiny_model(variant).double()
    grads = {}
    for sample in tokens:
        model.zero_grad()
        out = model(input_ids=sample[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(out, sample[1:]).backward()
        for name, parameter in model.named_parameters():
            grads.setdefault(name, []).append(parameter.grad.clone())
    return model, {name: torch.stack(g) for name, g in grads.items()}


def oracle_inputs(model, tokens):
    """The input of every linear, float64: {module name: [N, T, C]}."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            handles.append(
                module.register_forward_pre_hook(lambda _m, args, n=name: seen.update({n: args[0].detach()}))
            )
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def element_scores(metric, weight, grads, inputs):
    """The metric before its sums over a row or column, float64 [R, C]; vectorize keeps its sign here."""
    mean, fisher = grads.mean(0), grads.square().mean(0)
    energy = inputs.square().sum(1).mean(0)
    return {
        "magnitude_l1": weight.abs(),
        "magnitude_l2": weight.square(),
        "wanda": weight.abs() * energy.sqrt(),
        "energy": weight.square() * energy,
        "vectorize": weight * mean,
        "param_first": (weight * mean).abs(),
        "param_second": weight.square() * fisher,
        "param_mix": (weight * mean - 0.5 * weight.square() * fisher).abs(),
    }[metric]


def oracle_scores(metric, aggregate, model, grads, inputs):
    """Loops over layers and units; heads are looked up by the model's own numbering, not by the engine's groups."""
    config = model.config
    repeats, d = config.num_attention_heads // config.num_key_value_heads, config.head_dim
    result = {}
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}"

        def vector(path, axis, prefix=prefix):
            name = f"{prefix}.{path}"
            weight = model.get_submodule(name).weight.detach()
            elements = element_scores(metric, weight, grads[f"{name}.weight"], inputs[name])
            sums = elements.sum(1 - axis)
            return sums.abs() if metric == "vectorize" else sums

        mlp = [vector("mlp.gate_proj", 0), vector("mlp.up_proj", 0), vector("mlp.down_proj", 1)]
        q, k, v = (vector(f"self_attn.{n}_proj", 0) for n in "qkv")
        o = vector("self_attn.o_proj", 1)
        fold = [torch.zeros_like(k), torch.zeros_like(k)]
        for kv_head in range(config.num_key_value_heads):
            for query_head in range(kv_head * repeats, (kv_head + 1) * repeats):
                for row in range(d):
                    fold[0][kv_head * d + row] += q[query_head * d + row]
                    fold[1][kv_head * d + row] += o[query_head * d + row]
        heads = [fold[0], k, v, fold[1]] if repeats == 1 else [k, fold[0], v, fold[1]]
        if metric == "energy":
            mlp, heads = mlp[-1:], heads[-1:]
        result[f"layers.{index}.mlp"] = AGGREGATES[aggregate](torch.stack(mlp))
        rows = AGGREGATES[aggregate](torch.stack(heads))
        result[f"layers.{index}.heads"] = torch.stack([rows[i * d : (i + 1) * d].sum() for i in range(len(rows) // d)])
    return result


@pytest.fixture(scope="module", params=VARIANTS)
def case(request):
    tokens = tiny_tokens()
    model, grads = oracle_gradients(request.param, tokens)
    engine = tiny_model(request.param)
    needs = frozenset().union(*(m.needs for m in METRICS.values()))
    return engine, calibrate(engine, tokens, needs, batch_size=2), model, grads, oracle_inputs(model, tokens)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("metric", [m for m in METRICS if m != "random"])
def test_metric_equals_the_slow_definition(case, metric, aggregate):
    engine, statistics, model, grads, inputs = case
    scores = score(engine, metric, statistics, aggregate=aggregate)
    expected = oracle_scores(metric, aggregate, model, grads, inputs)
    assert scores.groups.keys() == expected.keys()
    # Products are given up to one common factor.
    factor = max(float(v.max()) for v in expected.values()) if aggregate == "prod" else 1.0
    for name, values in expected.items():
        found = scores.groups[name].double() * factor
        torch.testing.assert_close(found, values, rtol=2e-3, atol=1e-6 * float(values.max()))


def test_a_layers_score_is_the_sum_of_its_units(case):
    scores = score(case[0], "magnitude_l1")
    expected = [sum(float(scores.groups[f"layers.{i}.{k}"].sum()) for k in ("heads", "mlp")) for i in range(3)]
    torch.testing.assert_close(scores.layers, torch.tensor(expected))


def test_the_compat_fold_differs_only_for_grouped_queries():
    model = tiny_model("llama-gqa-tied")
    right, compat = (score(model, "magnitude_l1", fold=fold) for fold in ("gqa", "llm-pruner"))
    assert not torch.allclose(right.groups["layers.0.heads"], compat.groups["layers.0.heads"])
    assert torch.equal(right.groups["layers.0.mlp"], compat.groups["layers.0.mlp"])
    q = model.model.layers[0].self_attn.q_proj.weight.detach().abs().sum(1)
    o = model.model.layers[0].self_attn.o_proj.weight.detach().abs().sum(0)
    kv = sum(getattr(model.model.layers[0].self_attn, f"{n}_proj").weight.detach().abs().sum(1) for n in "kv")
    # Head j of 3 is given query heads j and j + 3, although 2j and 2j + 1 are the ones removed with it.
    misaligned = torch.stack([(q + o).view(6, 12)[[j, j + 3]].sum() + kv.view(3, 12)[j].sum() for j in range(3)])
    torch.testing.assert_close(compat.groups["layers.0.heads"], misaligned)


def test_random_follows_its_seed():
    model = tiny_model()
    first, again, other = (score(model, "random", seed=s).groups["layers.1.mlp"] for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def with_small_gradients(dtype):
    """Gradients that float16 holds only as subnormals or not at all: the head and every output matrix are tiny."""
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-4)
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(3e-4)
            layer.self_attn.o_proj.weight.mul_(3e-4)
    return model.half().to(dtype)


def test_half_precision_fisher_does_not_underflow(monkeypatch):
    """float16 gradients vanish without loss scaling (LLM-Pruner issue 23), their squares without float32 sums."""
    tokens = tiny_tokens()

    def fisher(dtype):
        model = with_small_gradients(dtype)
        return score(model, "param_second", calibrate(model, tokens, {"fisher"})).groups["layers.1.mlp"]

    exact = fisher(torch.float32)
    torch.testing.assert_close(fisher(torch.float16), exact, rtol=0.1, atol=float(exact.max()) * 0.02)
    monkeypatch.setattr(calibrate_module, "_LOSS_SCALE", {})
    assert float((fisher(torch.float16) - exact).abs().max() / exact.max()) > 0.2


def test_products_do_not_underflow():
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-14)
    scores = score(model, "magnitude_l1", aggregate="prod").groups["layers.0.mlp"]
    assert len(scores.unique()) == len(scores)
    assert bool((scores > 0).all())


def test_errors_name_value_and_choices():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"unknown method 'tailor'; choose from random, magnitude_l1"):
        score(model, "tailor")
    with pytest.raises(ValueError, match="unknown aggregate 'median'; choose from sum"):
        score(model, "random", aggregate="median")
    with pytest.raises(ValueError, match="method 'wanda' needs the quantity 'squares'"):
        score(model, "wanda")
    with torch.no_grad():
        model.model.layers[2].mlp.gate_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"scores of layers\.2\.mlp are not finite"):
        score(model, "magnitude_l1", structure=find_groups(model))
