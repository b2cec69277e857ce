"""Abilities of every family, on the tiny models of tests/helpers/families.py."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import pruneengine
from pruneengine.calibration.calibrate import calibrate
from pruneengine.checkpoint.write import save
from pruneengine.data.samples import Samples
from pruneengine.evaluation.perplexity import perplexity
from pruneengine.model import FAMILIES as ENTRIES
from pruneengine.model import find_groups
from pruneengine.model.edit import zero_weights
from pruneengine.model.experts import unfuse_experts
from pruneengine.model.masking import gate
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.lora import attach, detach
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.pruners.smallest import smallest_of_rows
from pruneengine.structured.allocate import allocate
from pruneengine.structured.apply import compact, mask
from pruneengine.structured.compensate import compensate
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.plan import make_plan
from pruneengine.structured.scores.score import score
from tests.helpers.families import FAMILIES, family_model
from tests.helpers.tiny import logits, tiny_tokens

TOKENS = tiny_tokens(4, 12)
each_family = pytest.mark.parametrize("name", FAMILIES)


def pruned(model, kinds=("heads", "mlp"), shape="per-layer", ratio=0.4, metric="magnitude_l1", statistics=None):
    structure = find_groups(model)
    scores = score(model, metric, statistics, structure=structure)
    allocation = "global" if shape == "per-layer" else "uniform"
    ratios = allocate(structure, scores, ratio, kinds=kinds, allocation=allocation)
    return make_plan(structure, scores, ratios, ratio, kinds=kinds, shape=shape)


@each_family
@pytest.mark.shows("structured")
def test_every_prunable_weight_belongs_to_exactly_one_unit(name):
    model = family_model(name)
    structure = find_groups(model)
    covered = {}
    for group in structure.groups:
        for member in group.members:
            axis, found = covered.setdefault(member.module, (member.axis, []))
            assert axis == member.axis
            for unit in range(group.units):
                found.extend(member.indices(torch.tensor([unit])).tolist())
    inside = f"{structure.family.layers}."
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith(inside)}
    # A gate beside the experts gives one number for every token, and no unit has a share of it.
    assert covered.keys() == {path for path in linears if not path.endswith("shared_expert_gate")}
    expected = 0
    for path, (axis, found) in covered.items():
        assert sorted(found) == list(range(linears[path].weight.shape[axis])), path
        biased = axis == 0 and linears[path].bias is not None
        expected += linears[path].weight.numel() + (linears[path].bias.numel() if biased else 0)
    assert sum(group.params for group in structure.groups) == expected


@each_family
@pytest.mark.shows("structured")
@pytest.mark.parametrize("kinds", [("heads", "mlp"), ("heads", "mlp", "layers")], ids=["widths", "layers"])
def test_masked_and_compacted_logits_agree(name, kinds):
    model = family_model(name)
    dense, plan = logits(model, TOKENS), pruned(model, kinds)
    with mask(model, plan):
        masked = logits(model, TOKENS)
    assert torch.equal(logits(model, TOKENS), dense)
    assert not torch.allclose(masked, dense, atol=1e-3)
    compact(model, plan)
    assert sum(p.numel() for p in model.parameters()) == plan.params_after
    torch.testing.assert_close(logits(model, TOKENS), masked, rtol=1e-5, atol=1e-5 * float(masked.abs().max()))


@each_family
@pytest.mark.shows("structured")
def test_heads_are_removed_wherever_there_are_several(name):
    model = family_model(name)
    structure = find_groups(model)
    if structure.by_name["layers.0.heads"].units == 1:
        with pytest.raises(ValueError, match="ALiBi" if structure.heads_reason else "share one key-value head"):
            pruned(model, ("heads",), "uniform")
        return
    plan = pruned(model, ("heads",), "uniform", 0.34)
    with mask(model, plan):
        masked = logits(model, TOKENS)
    compact(model, plan)
    assert find_groups(model).by_name["layers.0.heads"].units < structure.by_name["layers.0.heads"].units
    torch.testing.assert_close(logits(model, TOKENS), masked, rtol=1e-5, atol=1e-5 * float(masked.abs().max()))


@each_family
@pytest.mark.shows("search")
def test_every_row_of_a_batch_can_have_gates_of_its_own(name):
    model = family_model(name)
    structure = find_groups(model)
    group = structure.of_kind(("mlp",), (1,))[0]
    rows = torch.randint(0, 2, (len(TOKENS), group.units), generator=torch.Generator().manual_seed(0)).float()
    with gate(model, structure, {group.name: rows}):
        together = logits(model, TOKENS)
    for tokens, row, found in zip(TOKENS, rows, together, strict=True):
        with gate(model, structure, {group.name: row}):
            torch.testing.assert_close(logits(model, tokens[None])[0], found, rtol=1e-4, atol=1e-4)


@each_family
@pytest.mark.shows("reload")
@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
def test_a_saved_checkpoint_opens_with_transformers(name, shape, tmp_path):
    model = family_model(name)
    compact(model, pruned(model, shape=shape))
    saved, again = saved_and_reopened(model, tmp_path)
    assert sizes(again) == sizes(model)
    config = json.loads((saved.path / "config.json").read_text())
    assert ("auto_map" in config) == (shape == "per-layer" or not says_widths(model))


@each_family
@pytest.mark.shows("reload")
def test_a_checkpoint_without_its_first_layer_opens(name, tmp_path):
    model = family_model(name)
    structure = find_groups(model)
    scores = score(model, "magnitude_l1", structure=structure)
    scores = replace(scores, layers=torch.arange(structure.num_layers).float())
    ratios = allocate(structure, scores, 0.33, kinds=("layers",))
    plan = make_plan(structure, scores, ratios, 0.33, kinds=("layers",))
    assert plan.kept_layers == (1, 2)
    compact(model, plan)
    saved, _again = saved_and_reopened(model, tmp_path)
    assert "trust_remote_code" not in saved.loads_with


def saved_and_reopened(model, tmp_path):
    saved = save(model, None, tmp_path / "out", proof=False)
    opener, trust = getattr(transformers, saved.loads_with.partition(".")[0]), "trust_remote_code" in saved.loads_with
    again, info = opener.from_pretrained(saved.path, dtype="auto", output_loading_info=True, trust_remote_code=trust)
    assert not any(info.values()), info
    expected, found = logits(model, TOKENS), logits(again.eval(), TOKENS)
    if not find_groups(model).family.own_class:
        # Products of split matrices: the same sums in another order.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        return saved, again
    if find_groups(model).family.experts:
        # transformers adds up the experts of a token in another order.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        unfuse_experts(again)
        found = logits(again, TOKENS)
    assert torch.equal(found, expected)
    return saved, again


def sizes(model):
    return [(group.name, group.units, group.unit_params) for group in find_groups(model).groups]


def says_widths(model):
    """Return True where the config of a family has names for all widths that a plan of this file changes."""
    structure = find_groups(model)
    heads_stay = structure.by_name["layers.0.heads"].units == 1
    return bool(structure.family.mlp_name) and bool(structure.family.heads_name or heads_stay)


@each_family
@pytest.mark.shows("structured")
def test_generation_with_a_cache_equals_generation_without(name):
    model = family_model(name)
    compact(model, pruned(model, ("heads", "mlp", "layers"), ratio=0.5))
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(TOKENS[:1, :5], use_cache=use, **options) for use in (True, False))
    assert cached.shape[1] == 11
    assert torch.equal(cached, plain)


@each_family
@pytest.mark.shows("structured")
def test_statistics_are_those_of_each_members_rows(name):
    model = family_model(name)
    structure = find_groups(model)
    wanted = ("sum", "squares", "signed", "abs_mean", "fisher")
    statistics = calibrate(model, TOKENS, wanted, batch_size=3)
    model.zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for group in structure.groups:
        for member in group.members:
            weight = model.get_submodule(member.module).weight
            change = weight.detach() * weight.grad
            for quantity, of in (("signed", change), ("abs_mean", change.abs())):
                expected, found = of.sum(1 - member.axis), statistics.mean(quantity, member.module)
                torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-6)


@each_family
@pytest.mark.shows("structured")
@pytest.mark.parametrize("method", ["magnitude_l2", "wanda", "vectorize", "param_second"])
def test_every_kind_of_method_prunes(name, method):
    model = family_model(name)
    before = sum(p.numel() for p in model.parameters())
    report = pruneengine.prune(model, TOKENS, PruneConfig(method=method, ratio=0.3))
    assert sum(p.numel() for p in model.parameters()) == report.plan.params_after < before
    assert logits(model, TOKENS).isfinite().all()


@each_family
@pytest.mark.shows("sparse")
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_sparse_pruning_reaches_its_target_without_a_second_run(name, method):
    model = family_model(name)
    report = pruneengine.sparsify(model, TOKENS, SparseConfig(method=method, sparsity=0.5))
    assert not report.warnings
    for path, planned in report.plan.removed.items():
        assert int((model.get_submodule(path).weight == 0).sum()) == planned > 0
    structure = find_groups(model)
    assert len(report.plan.removed) == sum(len(structure.linears(layer)) for layer in range(3))
    assert logits(model, TOKENS).isfinite().all()


@each_family
@pytest.mark.shows("sparse")
def test_each_linear_is_pruned_behind_all_that_come_before_it(name):
    report = pruneengine.sparsify(model := family_model(name), TOKENS, SparseConfig(method="wanda", sparsity=0.5))
    expected = family_model(name)
    for site in find_groups(expected).sites:
        seen = []
        with expected.get_submodule(site.module).register_forward_pre_hook(
            lambda _m, args, seen=seen: seen.extend(args)
        ):
            logits(expected, TOKENS)
        norm = seen[0].reshape(len(TOKENS), -1, site.channels).square().sum(1).mean(0).sqrt()
        for path in site.consumers:
            weight = expected.get_submodule(path).weight
            zero_weights(expected.get_submodule(path), smallest_of_rows(weight, report.plan.removed[path], norm))
    for path in report.plan.removed:
        assert torch.equal(model.get_submodule(path).weight, expected.get_submodule(path).weight), path


@each_family
@pytest.mark.shows("search")
def test_a_search_measures_the_masked_model(name):
    model = family_model(name)
    structure, samples = find_groups(model), Samples(TOKENS, ("text",) * len(TOKENS))
    plans = [pruned(model, ratio=ratio) for ratio in (0.2, 0.4)]
    objective = Objective(model, samples, structure=structure, batch=2)
    dense = perplexity(model, samples).per_window
    for plan, found in zip(plans, objective.evaluate([MaskedPlan(plan) for plan in plans]), strict=True):
        with mask(model, plan):
            expected = perplexity(model, samples).per_window - dense
        torch.testing.assert_close(found.losses, expected, rtol=1e-4, atol=1e-5)


@each_family
@pytest.mark.shows("structured")
def test_refitted_weights_bring_the_output_nearer(name):
    model = family_model(name)
    dense, plan = logits(model, TOKENS), pruned(model, ("mlp",), ratio=0.3)
    found = compensate(model, plan, TOKENS, "least-squares", held_out=0.5)
    with mask(model, plan, corrections=found.corrections):
        refitted = logits(model, TOKENS)
    with mask(model, plan):
        plain = logits(model, TOKENS)
    assert (refitted - dense).square().mean() < (plain - dense).square().mean()
    compact(model, plan, corrections=found.corrections)
    torch.testing.assert_close(logits(model, TOKENS), refitted, rtol=1e-4, atol=1e-4)


@each_family
@pytest.mark.shows("recovery")
def test_every_linear_gets_an_adapter_that_merges(name):
    pytest.importorskip("peft")
    model = family_model(name)
    compact(model, pruned(model))
    structure, before = find_groups(model), logits(model, TOKENS)
    wrapped = attach(model, RecoverConfig(lora_r=2))
    adapted = {path.partition(".lora_A")[0] for path, _ in wrapped.named_parameters() if ".lora_A" in path}
    assert len(adapted) == sum(len(structure.linears(layer)) for layer in range(structure.num_layers))
    wrapped(input_ids=TOKENS, labels=TOKENS).loss.backward()
    gradients = [p.grad for path, p in wrapped.named_parameters() if ".lora_B" in path]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    merged = detach(wrapped, merge=True)
    torch.testing.assert_close(logits(merged, TOKENS), before)


def test_the_reload_proof_asks_the_class_that_the_family_names(tmp_path):
    model = family_model("llava")
    compact(model, pruned(model))
    saved = save(model, None, tmp_path / "out")
    assert saved.proof.max_difference <= saved.proof.tolerance
    assert saved.proof.loader == saved.loads_with
    assert "import AutoModelForImageTextToText, AutoTokenizer" in (saved.path / "README.md").read_text()


def documented(family):
    """Return a row of the table in docs/families.md."""
    heads = "key-value groups"
    if family.whole_heads:
        name, value, reason = family.whole_heads
        heads = f"one unit: {reason}" if name is None else f"{heads}; one unit where {name}={value}: {reason}"
    missing = " or ".join(family.kinds_without_config_name)
    opens = "plainly" if family.own_class else f"plainly, as {family.equivalent}"
    if missing:
        opens = f"modelling file: the config has no name for widths of {missing}"
    return f"| {', '.join(family.model_types)} | {heads} | {opens} |"


def test_the_documented_table_is_what_the_entries_say():
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    head = ["| `model_type` | heads go by | equal widths open |", "|---|---|---|"]
    assert "\n".join([*head, *map(documented, ENTRIES)]) in text


def test_every_entry_is_tested():
    assert {model_type for model_type, _ in FAMILIES.values()} == {t for f in ENTRIES for t in f.model_types}


def test_a_model_that_the_entry_excludes_is_refused_with_the_reason():
    model = family_model("opt")
    model.config.do_layer_norm_before = False
    with pytest.raises(ValueError, match=r"do_layer_norm_before=False is not supported: it has no norm behind"):
        find_groups(model)


@each_family
@pytest.mark.shows("reload")
def test_biases_in_place_of_removed_units_are_saved(name, tmp_path):
    model = family_model(name)
    plan = pruned(model, ("mlp",), "uniform", 0.3)
    compact(model, plan, corrections=compensate(model, plan, TOKENS, "bias").corrections)
    saved_and_reopened(model, tmp_path)
