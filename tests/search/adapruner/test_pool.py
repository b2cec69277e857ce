"""The pool of a search: which subsets there are, and that each has the statistics of its samples alone."""

from dataclasses import replace

import pytest
import torch

from pruneengine.calibration.calibrate import calibrate
from pruneengine.data.samples import Samples
from pruneengine.search.adapruner.pool import SubsetOptions, collect_pool
from pruneengine.search.adapruner.space.subsets import Subset, canonical_subset, menu, select
from pruneengine.structured.scores.score import score
from tests.helpers.tiny import tiny_model, tiny_tokens

SIZES = {16: {"all": 6, "c4": 4, "ptb": 2}, 9: {"all": 5, "c4": 5}}
METRICS = ("param_first", "param_mix", "param_second", "vectorize", "wanda", "energy")
QUANTITIES = ("squares", "signed", "fisher", "abs_mean", "mix")
OPTIONS = SubsetOptions((2, 6), ("random-0", "low-loss", "diverse"))


def samples(count: int = 6, length: int = 16) -> Samples:
    return Samples(tiny_tokens(count, length), ("c4",) * (count - 2) + ("ptb",) * 2)


@pytest.fixture
def passes(monkeypatch):
    """What calibrate is asked for, pass by pass."""
    asked = []

    def spy(model, samples, quantities, **options):
        asked.append(frozenset(quantities))
        return calibrate(model, samples, quantities, **options)

    monkeypatch.setattr("pruneengine.search.adapruner.pool.calibrate", spy)
    return asked


def test_the_menu_holds_every_combination_once():
    found = menu(SIZES, (2, 4), (16,), ("all", "c4"), ("random-0", "low-loss"))
    assert [str(subset) for subset in found] == [
        *("16/all/2/random-0", "16/all/2/low-loss", "16/all/4/random-0", "16/all/4/low-loss"),
        *("16/c4/2/random-0", "16/c4/2/low-loss", "16/c4/4/whole"),
    ]
    assert [str(s) for s in menu(SIZES, (5, 2), (9,), ("c4", "all"), ("diverse",))] == [
        "9/all/5/whole",
        "9/all/2/diverse",
    ]


def test_a_subset_in_words():
    found = Subset(128, "all", 32, "low-loss")
    assert (str(found), found.in_words()) == (
        "128/all/32/low-loss",
        "32 samples of 128 tokens from all sources, those of lowest loss",
    )
    assert replace(found, source="c4", selector="random-3").in_words().endswith("from c4, drawn at random (seed 3)")
    assert canonical_subset(Subset(16, "c4", 4, "diverse"), SIZES).in_words() == "all 4 samples of 16 tokens from c4"


@pytest.mark.parametrize(
    ("selector", "expected"),
    [("low-loss", (1, 3)), ("high-loss", (0, 4)), ("middle-loss", (2, 3)), ("diverse", (0, 4))],
)
def test_selectors(selector, expected):
    losses = torch.tensor([5.0, 1.0, 3.0, 2.0, 5.0])
    angles = torch.tensor([0.1, 0.0, 0.05, 0.0, 3.0])
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 9.0, 1.0, 1.0, 1.0])[:, None]
    found = select(Subset(16, "all", 2, selector), ("c4",) * 5, losses, features)
    assert found == expected


def test_diverse_takes_different_samples_even_where_all_point_one_way():
    assert select(Subset(16, "all", 3, "diverse"), ("c4",) * 4, torch.zeros(4), torch.ones(4, 2)) == (0, 1, 2)


def test_random_subsets_grow_with_their_count_and_differ_by_seed():
    many, losses = ("c4",) * 40, torch.zeros(40)
    small, large, other = (
        set(select(Subset(16, "all", count, selector), many, losses, losses[:, None]))
        for count, selector in ((5, "random-0"), (20, "random-0"), (20, "random-1"))
    )
    assert (len(small), len(large)) == (5, 20)
    assert small < large != other


def test_a_selector_stays_within_its_source():
    losses = torch.tensor([0.0, 3.0, 1.0, 2.0])
    assert select(Subset(16, "b", 1, "low-loss"), ("a", "b", "a", "b"), losses, torch.ones(4, 1)) == (3,)


def test_a_source_of_a_mix_gives_what_it_has():
    names = [str(subset) for subset in menu(SIZES, (2, 4, 6), (16,), ("all", "c4", "ptb"), ("random-0",))]
    everything = ["16/all/2/random-0", "16/all/4/random-0", "16/all/6/whole"]
    assert names == [*everything, "16/c4/2/random-0", "16/c4/4/whole", "16/ptb/2/whole"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((7,), (16,), ("all",), ("random-0",)), r"7 samples wanted, the pool holds 6 of 16 tokens from 'all'"),
        (((3,), (16,), ("ptb",), ("diverse",)), r"an empty menu"),
        (((2,), (16,), ("all",), ("best",)), r"unknown selector 'best'; choose from random-0, .*, diverse"),
        (((2,), (16,), ("all",), ("random-x",)), r"unknown selector 'random-x'"),
        (((2,), (1,), ("all",), ("diverse",)), r"length 1: expected a whole number of at least 2"),
        (((0,), (16,), ("all",), ("diverse",)), r"count 0: expected a whole number of at least 1"),
        (((2,), (32,), ("all",), ("diverse",)), r"the pool has samples of 16, 9 tokens"),
        (((2,), (16,), ("wiki",), ("diverse",)), r"unknown source 'wiki'; the pool has all, c4, ptb"),
        (((2,), (16,), ("all",), ()), r"an empty menu"),
    ],
)
def test_menus_that_the_pool_does_not_allow_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        menu(SIZES, *arguments)


@pytest.mark.parametrize(
    ("variant", "texts"), [("llama-gqa-tied", {16: samples(), 9: samples(7, 9)}), ("llama-biases", {16: samples()})]
)
def test_scores_of_every_subset_equal_those_of_a_pass_over_its_samples(variant, texts):
    model = tiny_model(variant)
    pool = collect_pool(model, texts, QUANTITIES, OPTIONS, batch_size=4)
    assert {s.length for s in pool.menu} == texts.keys()
    for subset in pool.menu:
        alone = calibrate(model, pool.chosen(subset), QUANTITIES)
        for metric in METRICS:
            expected, found = (score(model, metric, s).groups for s in (alone, pool.statistics(subset)))
            for group, values in expected.items():
                torch.testing.assert_close(found[group], values, rtol=1e-3, atol=1e-5 * float(values.max()))


def test_chosen_samples_are_those_the_selector_means():
    model = tiny_model()
    pool = collect_pool(model, {16: samples()}, ["squares"], SubsetOptions((2,), ("low-loss",), ("c4",)))
    losses = calibrate(model, samples(), ["signed"]).loss
    lowest = sorted(losses[:4].argsort()[:2].tolist())
    chosen = pool.chosen(pool.menu[0])
    assert torch.equal(chosen.tokens, samples().tokens[lowest])
    assert chosen.source == ("c4", "c4")


def test_statistics_go_by_any_name_of_a_subset_and_are_kept():
    pool = collect_pool(tiny_model(), {16: samples()}, ["squares"], OPTIONS)
    whole = pool.statistics(Subset(16, "all", 6, "high-loss"))
    assert whole is pool.statistics(Subset(16, "all", 6, "whole"))
    assert whole.num_samples == 6
    with pytest.raises(ValueError, match="subset 16/all/3/diverse is not on the menu of 4: 16/all/2/random-0, "):
        pool.statistics(Subset(16, "all", 3, "diverse"))


def test_two_passes_a_length_and_one_where_no_gradient_is_wanted(passes):
    collect_pool(tiny_model(), {16: samples()}, ["squares", "mix"], OPTIONS)
    assert passes == [{"sum", "squares"}, {"mix"}]
    passes.clear()
    collect_pool(tiny_model(), {16: samples()}, ["squares"], OPTIONS)
    assert passes == [{"sum", "squares"}]


def test_a_second_call_reads_the_cache_and_runs_no_pass(tmp_path):
    model, texts = tiny_model(), {16: samples(), 9: samples(6, 9)}
    first = collect_pool(model, texts, QUANTITIES, OPTIONS, cache=tmp_path)
    ran = []
    model.model.register_forward_pre_hook(lambda *_: ran.append(1))
    again = collect_pool(model, texts, QUANTITIES, OPTIONS, cache=tmp_path)
    assert not ran
    assert len(list(tmp_path.iterdir())) == 2
    for subset in first.menu:
        one, other = first.statistics(subset), again.statistics(subset)
        assert torch.equal(one.loss, other.loss)
        assert all(torch.equal(t, other.get(q, name)) for q, named in one.tensors.items() for name, t in named.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {"model": tiny_model(seed=3)},
        lambda a: a | {"samples": {16: Samples(tiny_tokens(6, seed=9), samples().source)}},
        lambda a: a | {"samples": {16: Samples(samples().tokens, ("c4",) * 6)}},
        lambda a: a | {"quantities": ["squares"]},
        lambda a: a | {"options": SubsetOptions((3,), ("low-loss",))},
        lambda a: a | {"layers": range(1, 3)},
        lambda a: a | {"kinds": ("mlp",)},
    ],
)
def test_whatever_changes_a_result_is_collected_anew(tmp_path, passes, change):
    arguments = {"model": tiny_model(), "samples": {16: samples()}, "quantities": ["signed"], "options": OPTIONS}
    collect_pool(**arguments, cache=tmp_path)
    passes.clear()
    collect_pool(**change(arguments), cache=tmp_path)
    assert passes
    assert len(list(tmp_path.iterdir())) == 2


def test_a_length_that_is_done_survives_an_interruption(tmp_path, monkeypatch):
    model, texts = tiny_model(), {16: samples(), 9: samples(6, 9)}

    def stop_at_9(model, samples, *args, **options):
        if samples.tokens.shape[1] == 9:
            raise KeyboardInterrupt
        return calibrate(model, samples, *args, **options)

    monkeypatch.setattr("pruneengine.search.adapruner.pool.calibrate", stop_at_9)
    with pytest.raises(KeyboardInterrupt):
        collect_pool(model, texts, ["squares"], OPTIONS, cache=tmp_path)
    assert [p.name.split("-")[1] for p in tmp_path.iterdir()] == ["16"]


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    model, arguments = tiny_model(), ({16: samples()}, ["squares"], OPTIONS)
    pool = collect_pool(model, *arguments, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=rf"corrupt statistics file .*{path.name} is no pool of this search: delete it"
    ):
        collect_pool(model, *arguments, cache=tmp_path)
    replace(pool.collected[16], model="123").save(path)
    with pytest.raises(ValueError, match=r"belong to another model.* delete it, and it is collected again"):
        collect_pool(model, *arguments, cache=tmp_path)
    replace(pool.collected[16], subsets={"a": (0,)}).save(path)
    with pytest.raises(ValueError, match=r"other subsets than its name says"):
        collect_pool(model, *arguments, cache=tmp_path)
    assert path.exists()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "a pool without samples"),
        ({9: samples()}, r"samples under length 9 are \[6, 16\], expected \[N, 9\]"),
        ({1: samples(6, 1)}, r"samples of 1 token\(s\): expected lengths of at least 2"),
        ({16: Samples(tiny_tokens(1), ("all",))}, "a source called 'all'"),
    ],
)
def test_bad_pools_are_refused_before_a_pass(passes, texts, message):
    with pytest.raises(ValueError, match=message):
        collect_pool(tiny_model(), texts, ["squares"], OPTIONS)
    with pytest.raises(ValueError, match="7 samples wanted, the pool holds 6"):
        collect_pool(tiny_model(), {16: samples()}, ["squares"], SubsetOptions((7,), ("diverse",)))
    assert not passes
