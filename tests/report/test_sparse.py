"""What a sparse prune leaves to read: its page, its card, and the zeros that were counted."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pruneengine.checkpoint.model_card import model_card
from pruneengine.checkpoint.write import count_saved_zeros
from pruneengine.evaluation.measures import Measures
from pruneengine.report import report_files
from pruneengine.report.figures.layers import sparsity_picture
from pruneengine.report.values.sparse import layer_rows, sparse_details, sparse_summary, speed_notes
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.plan import SparsePlan, is_sparse_plan
from pruneengine.sparse.prune import sparsify
from pruneengine.sparse.zeros import ZeroCount, count_zeros
from tests.helpers.pages import Reader, read
from tests.helpers.tiny import tiny_model, tiny_tokens

LEAST = {"method": "wanda", "sparsity asked": 0.5, "sparsity reached": 0.5, "zeros": 50, "weights": 100}


def plan_of(pattern="unstructured", removed=(32, 16)):
    shapes = {"model.layers.0.mlp.up_proj": (8, 8), "model.layers.1.mlp.up_proj": (8, 8)}
    counts = dict(zip(shapes, removed, strict=True))
    return SparsePlan("llama", "wanda", pattern, "owl", 0.375, sum(removed) / 128, shapes, counts)


@pytest.fixture(scope="module")
def sparse():
    model = tiny_model()
    return model, sparsify(model, tiny_tokens(4), SparseConfig("wanda", 0.5, allocation="owl", ignore=("o_proj",)))


def test_a_page_of_the_least_and_of_everything(sparse):
    model, report = sparse
    assert "50.0% of the weights" in report_files("sparse", LEAST)["report.html"]
    zeros = count_zeros(model, report.plan)
    values = sparse_summary(report, zeros, Measures(10, 40), Measures(10, 40), ("mind <this>",)) | sparse_details(
        report
    )
    values |= {"speed notes": ["same <speed>"], "seconds": {"prune": 1.0}, "recipe": {"sparse": {"seed": 3}}}
    files = report_files("sparse", values)
    words = " ".join(read(files["report.html"]).words)
    for expected in ("mind <this>", "same <speed>", "exactly as planned in every one", "Where the zeros are", "up"):
        assert expected in words
    assert json.loads(files["report.json"])["allocation values"]
    assert "o_proj" not in files["report.json"]


def test_a_page_says_where_zeros_differ():
    values = LEAST | {"zeros planned": 49, "matrices": 7, "matrices with other than the planned zeros": 2}
    assert "other than planned in 2" in report_files("sparse", values)["report.html"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [{}, {"up": []}, {"up": [0.5, None]}, {"$q_1$": [0.0, 1.0], "<k>": [None, None]}])
def test_the_picture_has_a_row_a_linear(rows):
    svg = sparsity_picture(rows)
    words = " ".join(Reader(svg).words)
    assert all(name in words for name in (rows or ("no linears",)))


def test_layers_weigh_their_linears_by_size():
    plan = plan_of()
    plan.shapes["model.layers.1.mlp.down_proj"], plan.removed["model.layers.1.mlp.down_proj"] = (8, 24), 96
    first, second = layer_rows(plan)
    assert first == {"layer": 0, "sparsity": 0.5, "linears": {"mlp.up_proj": 0.5}}
    assert second["sparsity"] == (16 + 96) / (64 + 192)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of(), "multiplies unstructured matrices"),
        (plan_of("4:8", (32, 32)), "multiplies 4:8 matrices"),
        (plan_of("2:4", (32, 32)), "All matrices are 2:4"),
        (plan_of("2:4", (32, 16)), "1 of the 2 matrices are 2:4"),
    ],
)
def test_what_gets_faster_depends_on_the_pattern(plan, words):
    dense, hardware = speed_notes(plan)
    assert "run at the same speed" in dense
    assert words in hardware
    assert ("to_sparse_semi_structured" in hardware) == (plan.pattern == "2:4")


def test_the_card_has_the_remarks_as_a_section():
    config = {"model_type": "llama"}
    widths = [{"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8}]
    remarks = ("Sparsity", ("one paragraph", "another"))
    card = model_card("a", config, "load()", 10, widths, recipe="sparse: {}", remarks=remarks)
    assert "## Sparsity\n\none paragraph\n\nanother\n\n## Recipe" in card
    assert "## Sparsity" not in model_card("a", config, "load()", 10, widths)


def test_zeros_are_counted_and_compared():
    found = ZeroCount.against(plan_of(), {"model.layers.0.mlp.up_proj": 32, "model.layers.1.mlp.up_proj": 20})
    assert (found.total, found.differing) == (52, {"model.layers.1.mlp.up_proj": 4})
    with pytest.raises(KeyError):
        ZeroCount.against(plan_of(), {})


def test_zeros_of_saved_files_over_shards(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a.weight": torch.tensor([[0.0, -0.0, 1.0]]), "a.bias": torch.zeros(3)}, tmp_path / "x-1.safetensors")
    save_file({"b.weight": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "x-2.safetensors")
    assert count_saved_zeros(tmp_path, ["a", "b", "c"]) == {"a": 2, "b": 0}


def test_a_sparse_plan_is_told_from_other_files(tmp_path):
    plan_of().save(tmp_path / "plan.json")
    assert is_sparse_plan(tmp_path / "plan.json")
    for name, text in (
        ("other.json", '{"format": "pruneengine.plan/1"}'),
        ("list.json", "[]"),
        ("bad.json", "{"),
    ):
        (tmp_path / name).write_text(text)
        assert not is_sparse_plan(tmp_path / name)
    assert not is_sparse_plan(tmp_path / "absent.json")
