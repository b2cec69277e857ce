"""Groups of every layout, and the parameter counts that LLM-Pruner published (methods 1.1)."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from pruneengine.model import FAMILIES, find_groups, model_fingerprint, unit_slices
from pruneengine.structured.allocate import allocate
from pruneengine.structured.apply import compact
from pruneengine.structured.plan import make_plan
from pruneengine.structured.scores.score import Scores
from tests.helpers.tiny import VARIANTS, tiny_model

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
LLAMA_3_8B = LLAMA_7B | {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
TINY_LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def meta_model(**sizes):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", tie_word_embeddings=False, **sizes))


def flat_scores(structure) -> Scores:
    groups = {group.name: torch.arange(group.units, dtype=torch.float32) for group in structure.groups}
    return Scores("magnitude_l1", "sum", groups, torch.zeros(structure.num_layers))


@pytest.mark.parametrize(
    ("sizes", "ratio", "layers", "published"),
    [
        (LLAMA_7B, 0.25, range(4, 30), 5_422_977_024),
        (LLAMA_3_8B, 0.25, range(4, 30), 6_612_586_496),
        (TINY_LLAMA, 0.25, range(4, 18), 945_907_712),
        (LLAMA_7B, 0.60, range(3, 31), 3_350_188_032),
    ],
    ids=["llama-7b-20%", "llama-3-8b-20%", "tinyllama-20%", "llama-7b-50%"],
)
def test_llm_pruner_protocol_reproduces_published_parameter_counts(sizes, ratio, layers, published):
    model = meta_model(**sizes)
    structure = find_groups(model)
    scores = flat_scores(structure)
    ratios = allocate(structure, scores, ratio, layers=layers, protocol="llm-pruner")
    plan = make_plan(structure, scores, ratios, ratio, shape="per-layer", protocol="llm-pruner")
    assert plan.params_after == published
    compact(model, plan)
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_cover_every_prunable_slice_exactly_once(variant):
    model = tiny_model(variant)
    structure = find_groups(model)
    covered: dict[tuple[str, int], int] = {}
    for group in structure.groups:
        for member in group.members:
            index = unit_slices(torch.arange(group.units), member.width)
            size = model.get_submodule(member.module).weight.shape[member.axis]
            assert sorted(index.tolist()) == list(range(size)), member
            covered[member.module, member.axis] = covered.get((member.module, member.axis), 0) + 1
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert {module for module, _ in covered} == set(linears)
    assert set(covered.values()) == {1}


@pytest.mark.parametrize("variant", VARIANTS)
def test_unit_params_are_what_compaction_removes(variant):
    model = tiny_model(variant)
    structure = find_groups(model)
    before = sum(p.numel() for p in model.parameters())
    scores = flat_scores(structure)
    plan = make_plan(structure, scores, {g.name: 0.4 for g in structure.groups}, 0.4, shape="per-layer")
    compact(model, plan)
    after = sum(p.numel() for p in model.parameters())
    assert plan.params_before == before
    assert plan.params_after == after < before


def test_sites_are_the_distinct_inputs():
    structure = find_groups(tiny_model())
    first = [site for site in structure.sites if site.name.startswith("layers.0.")]
    assert [(s.name.split(".")[-1], len(s.consumers), s.channels) for s in first] == [
        ("attn_in", 3, 60),
        ("o_in", 1, 72),
        ("mlp_in", 2, 60),
        ("down_in", 1, 72),
    ]


def test_a_group_explains_itself():
    group = find_groups(tiny_model()).groups[0]
    assert str(group) == (
        "layers.0.heads: 3 KV groups of 4,320 parameters "
        "(k_proj[rows x12], q_proj[rows x24], v_proj[rows x12], o_proj[columns x24])"
    )


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="llama: the model has no decoder layer"):
        find_groups(tiny_model(num_hidden_layers=0))


def test_unknown_architecture_names_what_was_looked_for():
    with pytest.raises(ValueError, match=r"unknown architecture 'gpt2' \(GPT2LMHeadModel\).*llama, mistral"):
        find_groups(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16)))


def test_a_missing_part_is_named():
    model = tiny_model()
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match=r"model\.layers\.1: looked for 'mlp\.up_proj'"):
        find_groups(model)


@pytest.mark.parametrize("variant", ["llama-gqa-tied", "qwen3-norms"])
def test_layers_removed_by_hand_keep_their_numbers_and_are_refused(variant):
    model = tiny_model(variant)
    del model.model.layers[1]
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.self_attn\.layer_idx is 2, expected 1: layers were removed"
    ):
        find_groups(model)
    model.model.layers[1].self_attn.layer_idx = 1
    assert find_groups(model).num_layers == 2


def test_fingerprint_sees_a_changed_weight():
    model = tiny_model()
    before = model_fingerprint(model)
    assert before == model_fingerprint(tiny_model())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert model_fingerprint(model) != before


def test_fingerprint_sees_columns_that_were_folded_to_zero():
    model = tiny_model()
    before = model_fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 1:20] = 0
    assert model_fingerprint(model) != before


def test_every_family_can_be_saved_with_per_layer_widths():
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    from pruneengine.checkpoint import config_json as checkpoint_config

    types = {t if family.own_class else family.equivalent for family in FAMILIES for t in family.model_types}
    known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES | MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    classes = [known[model_type] for model_type in types]
    assert sorted(f"Pruned{name}" for name in classes) == sorted(checkpoint_config.SHIPPED)
