"""The published loops that are timed do what the reference says, and their table and files say what was found."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import pruneengine
from benchmarks.sparse.gate import check_same, gate
from benchmarks.sparse.naive import Hessian, RowNorms, naive_sparsify
from benchmarks.sparse.peers import OTHERWISE, TIMES, WORKS, measure, table
from benchmarks.sparse.providers import (
    COMPRESSOR,
    LOADED,
    LOOP,
    OURS,
    PRUNE,
    TWO_PASS,
    Engine,
    Outcome,
    Panel,
    PublishedLoop,
    Task,
    panel,
)
from pruneengine.bench.record import GateError, Setting, read, record
from tests.helpers import sparse_reference as reference
from tests.helpers.tiny import tiny_model, tiny_tokens

# Divisible by 8, so that 4:8 fits every matrix.
SIZES = {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
SETTING = Setting("sparse_peers", "a processor, 2 cores", 1, "abc1234", "2026-01-31")


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


@dataclass(frozen=True)
class Config:
    """What stands for a config of the engine here."""

    method: str
    sparsity: float
    pattern: str
    mode: str
    batch_size: int


def loop_in_place_of_the_engine(model, batches, config):
    """Prunes as the published loop does, with counts that are exact."""
    group = None if config.pattern == "unstructured" else tuple(map(int, config.pattern.split(":")))
    statistic = {"wanda": RowNorms, "sparsegpt": Hessian}[config.method]
    naive_sparsify(model, torch.cat(list(batches)), statistic, config.sparsity, group)


class FailingPeer:
    versions = "peer 1.0"

    def prune(self, _work, _masks=False):
        raise RuntimeError("it\ndied")


@pytest.fixture
def everyone(monkeypatch, tmp_path):
    monkeypatch.setattr(pruneengine, "SparseConfig", Config, raising=False)
    monkeypatch.setattr(pruneengine, "sparsify", loop_in_place_of_the_engine, raising=False)
    monkeypatch.setattr(pruneengine, "load", lambda _folder: None)
    model = tiny_model(**SIZES)
    task = Task(model, tmp_path, tiny_tokens(), 2, 1)
    found = {OURS: Engine(task, "sequential"), TWO_PASS: Engine(task, "two-pass"), LOOP: PublishedLoop(task)}
    return Panel(found, (OURS, TWO_PASS, LOOP, COMPRESSOR), {})


@pytest.mark.parametrize("name", ["wanda-50", "wanda-2:4", "sparsegpt-2:4"])
def test_everyone_is_timed_and_a_peer_that_fails_is_a_row_with_its_reason(everyone, name, tmp_path):
    everyone.providers[COMPRESSOR] = FailingPeer()
    model, work = everyone.providers[LOOP].task.model, WORKS[name]
    rows = measure("a case", work, model, everyone, 2, SETTING)
    of = {(row.provider, row.quantity): row for row in rows}
    assert of[OURS, PRUNE].rounds == of[TWO_PASS, PRUNE].rounds == of[LOOP, PRUNE].rounds == 2
    assert of[OURS, LOADED].median >= of[OURS, PRUNE].median > 0
    assert of[TWO_PASS, OTHERWISE].median == 0
    assert of[LOOP, TIMES[PRUNE]].median > 0
    if COMPRESSOR in work.faster:
        assert of[COMPRESSOR, PRUNE].rounds == 0
        assert of[COMPRESSOR, PRUNE].versions == "failed: RuntimeError: it died"
    else:
        assert (COMPRESSOR, PRUNE) not in of
    record(rows, tmp_path)
    held = read(tmp_path / "sparse_peers.csv")
    assert [(line["provider"], line["quantity"]) for line in held] == list(of)
    lines = table(rows, work).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["a case", *dict.fromkeys(row.provider for row in rows)]
    assert lines[3].endswith(("met", "MISSED"))


def test_the_gate_stops_other_choices_and_other_counts(everyone, monkeypatch):
    model, work = everyone.providers[LOOP].task.model, WORKS["wanda-50"]

    def change(pruned, chosen):
        weight = pruned.model.layers[1].mlp.up_proj.weight
        row = (weight[3] == 0).nonzero().flatten()
        weight.data[3, row[0]] = 1.0
        if chosen == "other":
            weight.data[3, (weight[3] != 0).nonzero().flatten()[-1]] = 0.0

    for chosen, message in (("other", "differ in model.layers.1.mlp.up_proj"), ("fewer", "removed .* expected")):

        def wrong(pruned, batches, config, chosen=chosen):
            loop_in_place_of_the_engine(pruned, batches, config)
            change(pruned, chosen)

        monkeypatch.setattr(pruneengine, "sparsify", wrong)
        with pytest.raises(GateError, match=message):
            gate(work, model, everyone)


def test_a_missing_environment_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.sparse.providers.PYTHON", tmp_path / "python")

    class Tokenizer:
        def save_pretrained(self, _folder):
            pass

    with panel(tiny_model(), Tokenizer(), tiny_tokens(), 2, torch.get_num_threads(), [COMPRESSOR]) as everyone:
        assert everyone.timed == (OURS, TWO_PASS, COMPRESSOR)
        assert "--setup" in everyone.failed[COMPRESSOR]
        assert everyone.prune(COMPRESSOR, WORKS["wanda-50"]) is None


def test_the_table_says_which_promises_are_kept():
    def row(provider, quantity, values, unit="s"):
        return SETTING.row("a case", provider, quantity, unit, values, "torch 1")

    rows = [
        row(OURS, PRUNE, [2.0]), row(LOOP, PRUNE, [9.0]), row(LOOP, TIMES[PRUNE], [4.5], "ratio"),
        row(COMPRESSOR, PRUNE, [18.0]), row(COMPRESSOR, TIMES[PRUNE], [9.0], "ratio"),
    ]  # fmt: skip
    ours, loop, compressor = table(rows, WORKS["wanda-50"]).splitlines()[1:]
    assert ours.split() == [OURS, "2.00", "2.00", "-", "2.00"]
    assert loop.split()[-4:] == ["4.50", ">=", "4", "met"]
    assert compressor.split()[-4:] == ["9.00", ">=", "10", "MISSED"]


def test_one_tie_may_grow_behind_the_layer_that_it_is_in(everyone):
    model, work = everyone.providers[LOOP].task.model, WORKS["wanda-50"]
    loop = everyone.prune(LOOP, work, masks=True)
    # Two weights of one row of equal score, of which one goes and the other stays.
    path = "model.layers.0.mlp.up_proj"
    weight, squares, mask = linears(model)[path].weight.data, loop.statistics[path].squares, loop.removed[path][5]
    scores = weight[5].abs() * squares.sqrt()
    last = int(scores.masked_fill(~mask, 0).argmax())
    next_one = int(scores.masked_fill(mask, torch.inf).argmin())
    weight[5, next_one] = scores[last] * (1 + 1e-6) / squares[next_one].sqrt()

    def choosing_otherwise(count):
        removed = {name: mask.clone() for name, mask in loop.removed.items()}
        removed[path][5, [last, next_one]] ^= True
        removed["model.layers.2.mlp.up_proj"].view(-1)[:count] ^= True
        return Outcome({PRUNE: 1.0}, removed)

    of = loop.removed["model.layers.2.mlp.up_proj"].numel() + mask.numel() * len(weight)
    assert check_same(work, model, COMPRESSOR, choosing_otherwise(of // 11), loop) == of // 11 + 2
    with pytest.raises(
        GateError, match=r"agree on 6\d\.\d\d% of the weights of the linears that differ, expected 75\.0%"
    ):
        check_same(work, model, COMPRESSOR, choosing_otherwise(of // 3), loop)
    fewer = {name: mask for name, mask in loop.removed.items() if ".0.mlp.down" not in name}
    with pytest.raises(GateError, match=r"do not prune the same linears: model\.layers\.0\.mlp\.down_proj"):
        check_same(work, model, COMPRESSOR, Outcome({}, fewer), loop)
