"""Recovery: what is trained, and what is left."""

import contextlib
from unittest import mock

import pytest
import torch
from torch import nn

from pruneengine import PruneConfig, find_groups, prune
from pruneengine.recovery import RecoverConfig, TokenRows, recover, training
from pruneengine.recovery.dropout import SixteenBitDropout
from pruneengine.recovery.lora import attach, detach, find_targets
from pruneengine.report.values.recovery import training_warnings
from tests.helpers.tiny import VARIANTS, logits, tiny_model, tiny_tokens

QUICK = {"batch": 4, "micro_batch": 2, "max_steps": 6, "eval_every": 2, "lr": 1e-2, "val_rows": 3}
WINDOWS = tiny_tokens(14, 12)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@contextlib.contextmanager
def at_micro_batch(number, act):
    """Replace the result of one call of compute_loss."""
    original, calls = training.LoraTrainer.compute_loss, []

    def compute_loss(self, *arguments, **options):
        calls.append(1)
        loss = original(self, *arguments, **options)
        return act(loss) if len(calls) == number else loss

    with mock.patch.object(training.LoraTrainer, "compute_loss", compute_loss):
        yield calls


def stop(_loss):
    raise KeyboardInterrupt


def test_a_text_is_memorised_and_only_the_linears_change():
    model = tiny_model()
    before = weights(model)
    model.model.norm.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    rows = WINDOWS[:1].repeat(10, 1)
    report = recover(model, config=RecoverConfig(**QUICK | {"max_steps": 40, "eval_every": 10}), data=rows)
    assert report.validation[report.best_step] < 0.6 * report.validation[0]
    assert report.best_step == 40
    assert report.losses[40] < report.losses[1]
    expected = {f"{path}.weight" for path in find_targets(find_groups(model))}
    assert changed(model, before) == expected
    assert report.trained == sum(8 * sum(before[name].shape) for name in expected)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert not model.training
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_trace_of_the_training_is_left_in_config_or_hooks(checkpointing):
    model = tiny_model()
    embeddings = model.get_input_embeddings()
    mine = embeddings.register_forward_hook(lambda *_: None)
    before = model.config.to_dict(), model.generation_config.to_dict()
    recover(model, config=RecoverConfig(**QUICK | {"gradient_checkpointing": checkpointing}), data=WINDOWS)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert list(embeddings._forward_hooks) == [mine.id]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.layers.modules())


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_changes_no_logits(variant):
    model, tokens = tiny_model(variant), tiny_tokens(2, 9)
    plain = logits(model, tokens)
    wrapped = attach(model, RecoverConfig())
    trainable = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert len(trainable) == 3 * 7 * 2
    assert all("lora_" in name for name in trainable)
    torch.testing.assert_close(logits(model, tokens), plain, rtol=0, atol=0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    adapted = logits(wrapped.eval(), tokens)
    assert detach(wrapped, merge=True) is model
    torch.testing.assert_close(logits(model, tokens), adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, plain, rtol=1e-2, atol=1e-2)


def test_dropout_drops_as_many_as_it_says_and_keeps_the_mean():
    torch.manual_seed(0)
    module, x = SixteenBitDropout(0.3), torch.ones(999, 101, requires_grad=True)
    y = module(x)
    y.sum().backward()
    dropped = (y == 0).float()
    # Four standard errors of about 100,000 draws, and of the share dropped at each place of a 64-bit draw.
    assert float(dropped.mean()) == pytest.approx(0.3, abs=4 * 0.0015)
    places = dropped.flatten()[:100_896].view(-1, 4).mean(0)
    torch.testing.assert_close(places, torch.full((4,), 0.3), rtol=0, atol=4 * 0.003)
    assert float(y.detach().max()) == pytest.approx(1 / 0.7, rel=1e-4)
    assert torch.equal(x.grad, y.detach())
    assert module.eval()(x) is x
    assert SixteenBitDropout(0.0)(x) is x
    wrapped = attach(tiny_model(), RecoverConfig())
    assert sum(isinstance(part, SixteenBitDropout) for part in wrapped.modules()) == 21


@pytest.mark.parametrize("kinds", [("heads", "mlp"), ("heads", "mlp", "layers")])
def test_layers_of_different_widths_and_removed_layers(kinds):
    model = tiny_model()
    config = PruneConfig(
        method="magnitude_l1", ratio=0.5, structure=kinds, shape="per-layer", allocation="global", round_to=1
    )
    plan = prune(model, config=config).plan
    widths = {name: len(kept) for name, kept in plan.keep.items()}
    assert (len(plan.kept_layers) < 3) == ("layers" in kinds)
    assert len(set(widths.values())) > 2
    shapes = {name: p.shape for name, p in model.named_parameters()}
    report = recover(model, config=RecoverConfig(**QUICK), data=WINDOWS[:1].repeat(9, 1))
    assert report.validation[report.best_step] < report.validation[0]
    assert {name: p.shape for name, p in model.named_parameters()} == shapes


def test_weights_stay_where_no_step_is_better():
    model = tiny_model()
    before = weights(model)
    report = recover(model, config=RecoverConfig(**QUICK | {"lr": 5.0, "max_steps": 1, "eval_every": 1}), data=WINDOWS)
    assert report.best_step == 0
    assert not changed(model, before)


def test_a_run_without_validation_that_nobody_asked_for_is_warned_of():
    config = RecoverConfig(**QUICK | {"max_steps": 1, "val_rows": None})
    (warning,) = training_warnings(recover(tiny_model(), config=config, data=WINDOWS[:9]))
    assert warning.startswith("9 rows are too few to keep any for validation: the last step is kept, unchecked")
    asked = RecoverConfig(**QUICK | {"max_steps": 1, "val_rows": 0})
    assert training_warnings(recover(tiny_model(), config=asked, data=WINDOWS[:9])) == ()
    enough = recover(tiny_model(), config=config, data=WINDOWS[:10])
    assert (enough.validation_rows, training_warnings(enough)) == (1, ())


def test_micro_batches_do_not_change_the_result_and_checkpointing_neither():
    results = []
    for options in ({"micro_batch": 1}, {"micro_batch": 4}, {"micro_batch": 4, "gradient_checkpointing": True}):
        model = tiny_model()
        rows = TokenRows(tuple(row[: 5 + i % 7] for i, row in enumerate(WINDOWS)), (1,) * len(WINDOWS))
        recover(model, config=RecoverConfig(**QUICK | {"lora_dropout": 0.0} | options), data=rows)
        assert not getattr(model, "is_gradient_checkpointing", False)
        results.append(logits(model, WINDOWS[:2]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(results[2], results[1], rtol=1e-4, atol=1e-4)


def test_a_model_in_bfloat16_is_trained_in_float32_adapters():
    model = tiny_model(dtype=torch.bfloat16)
    before = weights(model)
    report = recover(model, config=RecoverConfig(**QUICK), data=WINDOWS[:1].repeat(9, 1))
    assert report.validation[report.best_step] < report.validation[0]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert changed(model, before)
    wrapped = attach(model, RecoverConfig())
    assert {p.dtype for p in wrapped.parameters() if p.requires_grad} == {torch.float32}


def test_a_teacher_pulls_the_student_to_itself():
    teacher = tiny_model()
    model = tiny_model()
    prune(model, config=PruneConfig(method="magnitude_l1", ratio=0.3, round_to=1))
    dense = logits(teacher, WINDOWS).log_softmax(-1)

    def distance():
        return float((dense.exp() * (dense - logits(model, WINDOWS).log_softmax(-1))).sum(-1).mean())

    before = distance()
    options = {"distill_weight": 1.0, "distill_topk": 20, "max_steps": 20, "eval_every": 20, "val_rows": 0}
    report = recover(model, config=RecoverConfig(**QUICK | options), data=WINDOWS, teacher=teacher)
    assert distance() < 0.9 * before
    assert report.losses[20] < report.losses[1]
    assert report.validation == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 0}, "lora_r must be a whole number of at least 1, got 0"),
        ({"lr": -1.0}, "lr must be positive and finite, got -1.0"),
        ({"lr": "high"}, "lr must be a number, got 'high'"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\), got 1.0"),
        ({"batch": 6}, "batch must be a multiple of micro_batch 4, got 6"),
        ({"cutoff": 1}, "cutoff must be a whole number of at least 2, got 1"),
        ({"val_rows": 3, "val_fraction": 0.1}, "give one of them"),
        ({"val_fraction": 1.5}, r"val_fraction must be in \(0, 1\), got 1.5"),
        ({"max_steps": 2.5}, "max_steps must be a whole number of at least 1, got 2.5"),
        ({"data": ""}, "spec ''"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing must be bool, got 1"),
        ({"targets": " , "}, "targets must be names of linears"),
        ({"targets": ["q_proj", " "]}, "targets must be names of linears"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        RecoverConfig(**options)


def test_a_config_survives_a_recipe_and_unknown_options_do_not():
    config = RecoverConfig(targets="q_proj,re:.*mlp.*", max_steps=3)
    assert config.targets == ("q_proj", "re:.*mlp.*")
    assert RecoverConfig.from_dict(config.to_dict()) == config
    # One text, as YAML and a command line hold it: blanks part nothing, and a pattern keeps its commas.
    for given in ("q_proj, v_proj", ["q_proj ", "v_proj"]):
        assert RecoverConfig(targets=given).targets == ("q_proj", "v_proj")
    assert RecoverConfig(targets="q_proj,re:.*layers.[0,1]{1,2}.*").targets == ("q_proj", "re:.*layers.[0,1]{1,2}.*")
    with pytest.raises(ValueError, match="unknown option 'rank'; known: batch"):
        RecoverConfig.from_dict({"rank": 3})


def test_targets_are_found_or_named_with_their_neighbours():
    structure = find_groups(tiny_model())
    assert len(find_targets(structure)) == 21
    assert find_targets(structure, ["self_attn.v_proj", "re:.*layers.1.*up_proj"]) == [
        "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj",
        "model.layers.2.self_attn.v_proj",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="target 'qproj' matches no linear of the model; near names: q_proj"):
        find_targets(structure, ["k_proj", "qproj"])


def test_what_cannot_be_trained_is_refused():
    config = RecoverConfig(**QUICK)
    with pytest.raises(ValueError, match="float16 cannot be trained safely"):
        recover(tiny_model(dtype=torch.float16), config=config, data=WINDOWS)
    with pytest.raises(ValueError, match="token id 500: the model's vocabulary is 97"):
        recover(tiny_model(), config=config, data=torch.full((9, 4), 500))
    with pytest.raises(ValueError, match="3 of 3 rows for validation leave none"):
        recover(tiny_model(), config=config, data=WINDOWS[:3])
    with pytest.raises(ValueError, match="distill_topk is 5: an option of a teacher"):
        recover(tiny_model(), config=RecoverConfig(**QUICK, distill_topk=5), data=WINDOWS)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        recover(tiny_model(), config=config)
