"""Allocation functions as values: the notation, the published strings, files, and the genome."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneengine.search.dsa.evolution import SPREADS, STAGES, crossover, mutate, random_function
from pruneengine.sparse.functions.function import PUBLISHED, Function, is_function_file, read_metadata
from pruneengine.sparse.functions.grammar import parse
from pruneengine.sparse.functions.names import ALIASES, COMPOUNDS, MATRIX_ONLY, NOT_IN_CODE, POST, PRE, REDUCE


@st.composite
def functions(draw):
    compat = draw(st.booleans())

    def menu(stage, names):
        return st.sampled_from([name for name in names if not (compat and name in NOT_IN_CODE[stage])])

    return Function(
        tuple(draw(st.lists(menu("pre", PRE), max_size=2))),
        draw(st.sampled_from(REDUCE)),
        draw(menu("transform", POST)),
        draw(menu("post", POST)),
        draw(st.floats(0, 0.5, exclude_min=True)),
        draw(st.sampled_from([1, -1])),
        compat,
    )


@given(functions())
def test_text_reads_back_as_the_same_function(function):
    assert parse(str(function)) == function
    assert parse(str(function).upper().replace(" ", "")) == function


@given(functions())
def test_json_reads_back_as_the_same_function(function):
    assert Function.from_dict(json.loads(json.dumps(function.to_dict()))) == function


@settings(max_examples=200)
@given(st.text(alphabet="absvrmenolgWx:()|,=-+λ0.79 ", max_size=40))
def test_any_text_is_a_function_or_a_clear_error(text):
    said = ""
    try:
        function = parse(text)
    except ValueError as error:
        said = str(error)
    if said:
        assert f"of {text!r}: " in said
    else:
        assert parse(str(function)) == function


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("absminmax | var | atan, sigmoid | λ=0.08", Function(("abs", "minmax"), "var", "atan", "sigmoid", 0.08)),
        ("no|mean", Function((), "mean")),
        ("no, log | geometric_mean | no, exp", Function(("log",), "geometric", "no", "exp")),
        ("MMS,POW | l2 | lambda = .1 | sign = -", Function(("minmax", "square"), "frobenius", spread=0.1, sign=-1)),
        ("abs | std | - | spread=0.5", Function(("abs",), "std", spread=0.5, sign=-1)),
        ("log | var | no | compat | +", Function(("log",), "var", compat=True)),
        ("W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)", PUBLISHED),
        (" w: (NO_OP) - (L1_NORM) - (NO_OP,SIN) - (10)", Function((), "l1", "no", "sin", compat=True)),
        ("W:(ABS)-(VAR)-(9)", Function(("abs",), "var", compat=True)),
        ("W:(ABS,MMS)-(VAR)-(TANH)", Function(("abs", "minmax"), "var", "tanh", compat=True)),
        ("W:(POW,NORMALIZE)-(NO_OP)-(SOFTPLUS)-(8)", Function(("square", "normalize"), "no", "softplus", compat=True)),
    ],
)
def test_notations(text, expected):
    assert parse(text) == expected


def test_published_strings_keep_the_spread_that_counts():
    assert {parse(f"W:(ABS)-(STD)-(SIN)-({step})").spread for step in (7, 8, 9, 10)} == {0.08}


def test_print():
    assert str(Function((), "mean")) == "no | mean | no | λ=0.08"
    assert str(Function(("abs", "log"), "var", "no", "sin", 0.1, -1)) == "abs, log | var | no, sin | λ=0.1 | -"
    assert str(PUBLISHED) == "abslog | var | atan, asin | λ=0.08 | compat"


@pytest.mark.parametrize("name", [*ALIASES, *COMPOUNDS])
def test_other_names_stand_for_operations(name):
    texts = [f"{name} | mean", f"no | {name}", f"no | mean | {name}"]
    read = []
    for text in texts:
        try:
            read.append(parse(text))
        except ValueError:
            continue
    assert read


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", 1, "expected '|' and a reduction"),
        ("abs", 4, "expected '|' and a reduction"),
        ("|var", 1, "expected an operation of the stage pre"),
        ("abs | vr", 7, "did you mean var?"),
        ("ablog | var", 1, "did you mean abslog"),
        ("abs | var | qqqq", 13, "choose from no, sin"),
        ("abs | gram", 7, "matrices only"),
        ("abs, log, exp | var", 11, "two operations before the reduction"),
        ("absminmax, exp | var", 12, "two operations before the reduction"),
        ("abs | var, std", 10, "one reduction only"),
        ("abs | var | sin, cos, tan", 23, "a transform and a post operation at most"),
        ("abs | var | λ=x", 15, "expected a number"),
        ("abs | var | λ=0.6", 15, "(0, 0.5]"),
        ("abs | var | λ=nan", 15, "(0, 0.5]"),
        ("abs | var | - | +", 17, "given twice"),
        ("abs | var | sin | cos", 19, "expected λ=NUMBER"),
        ("abs | var | sign=2", 13, "expected λ=NUMBER"),
        ("log, softmax | var | compat", 6, "not in the authors' code"),
        ("W:(ABS)-(VAR", 9, "expected operations in parentheses"),
        ("W:(ABS)+(VAR)", 8, "expected '-' or the end"),
        ("W:(ABS)-(VAR)", 14, "3 or 4 stages"),
        ("W:(ABS)-(VAR)-(SIN)-(x)", 22, "whole number λ"),
        ("W:(ABS)-(SLOGDET)-(SIN)-(7)", 10, "matrices only"),
        ("W:(SOFTMAX)-(VAR)-(SIN)-(7)", 4, "not in the authors' code"),
    ],
)
def test_errors_name_the_position_and_what_was_expected(text, position, message):
    with pytest.raises(ValueError, match=f"at position {position} of") as error:
        parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize("name", MATRIX_ONLY)
def test_reductions_of_matrices_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="on which the published code raises"):
        Function(("abs",), name)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pre": "abs"}, TypeError, "tuple"),
        ({"pre": ("abs", "log", "exp")}, ValueError, "at most 2"),
        ({"spread": 0}, ValueError, r"\(0, 0.5\]"),
        ({"spread": float("nan")}, ValueError, r"\(0, 0.5\]"),
        ({"spread": "0.1"}, TypeError, "number"),
        ({"sign": 2}, ValueError, "sign"),
        ({"sign": True}, ValueError, "sign"),
        ({"compat": 1}, TypeError, "compat"),
        ({"transform": 3}, TypeError, "name"),
        ({"post": "sqrt", "compat": True}, ValueError, "authors' code"),
    ],
)
def test_fields_are_checked(fields, error, message):
    with pytest.raises(error, match=message):
        Function(**{"pre": ("abs",), "reduce": "mean"} | fields)


def test_saved_functions_come_back_with_what_is_known_of_them(tmp_path):
    path = tmp_path / "best.json"
    function = Function(("abs", "exp"), "entropy", "cos", "log", 0.11, -1)
    function.save(path, {"model": "tiny", "sparsity": 0.7, "loss": 3.25})
    assert Function.load(path) == function
    assert read_metadata(path) == {"model": "tiny", "sparsity": 0.7, "loss": 3.25}
    assert is_function_file(path)
    assert json.loads(path.read_text(encoding="utf-8"))["text"] == str(function)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"format": "pruneengine.plan/1"}',
        '{"format": "pruneengine.function/1"}',
        '{"format": "pruneengine.function/1", "function": {"pre": ["abs"]}}',
        '{"format": "pruneengine.function/1", "function": {"pre": "abs", "reduce": "var"}}',
        '{"format": "pruneengine.function/1", "function": {"pre": [], "reduce": "vr"}}',
        '{"format": "pruneengine.function/1", "function": {"pre": [], "reduce": "var", "more": 1}}',
    ],
)
def test_files_that_hold_no_function_are_refused_by_name(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"file\.json holds no allocation function"):
        Function.load(path)


def test_other_files_are_no_function_files(tmp_path):
    other = tmp_path / "plan.json"
    other.write_text('{"format": "pruneengine.plan/1"}')
    assert not is_function_file(other)
    assert not is_function_file(tmp_path / "none.json")


@settings(max_examples=50)
@given(st.integers(0, 2**32), functions())
def test_genome_stays_within_the_language(seed, given_function):
    rng = random.Random(seed)
    one = random_function(rng)
    mutant = mutate(given_function, rng)
    child = crossover(given_function, mutant, rng)
    for function in (one, mutant, child):
        assert parse(str(function)) == function
        assert not function.compat
    assert one.spread in SPREADS


@given(st.integers(0, 2**32))
def test_crossover_takes_the_first_stages_of_one_and_the_last_of_the_other(seed):
    rng = random.Random(seed)
    a = Function(("abs",), "var", "sin", "cos", 0.05, 1)
    b = Function(("log",), "std", "exp", "tanh", 0.12, -1)
    child = crossover(a, b, rng)
    from_a = [getattr(child, stage) == getattr(a, stage) for stage in STAGES]
    assert from_a == sorted(from_a, reverse=True)
    assert 0 < sum(from_a) < len(STAGES)


def test_mutation_changes_stages_at_its_rate():
    rng = random.Random(1)
    changed = 0
    for _ in range(2000):
        function = random_function(rng)
        mutant = mutate(function, rng, 0.3)
        assert mutant != function
        changed += sum(getattr(function, stage) != getattr(mutant, stage) for stage in STAGES)
    # 0.3 a stage, and one where none was drawn: 6 * 0.3 + 0.7^6.
    assert changed / 2000 == pytest.approx(1.918, abs=0.1)
    with pytest.raises(ValueError, match="rate"):
        mutate(function, rng, 1.5)


def test_random_functions_reach_every_operation():
    rng = random.Random(2)
    drawn = [random_function(rng) for _ in range(3000)]
    assert {name for function in drawn for name in function.pre} == set(PRE) - {"no"}
    assert {function.reduce for function in drawn} == set(REDUCE) - {"no"}
    assert {function.post for function in drawn} == set(POST) == {function.transform for function in drawn}
    assert [random_function(random.Random(3)) for _ in range(2)] == [random_function(random.Random(3))] * 2
    assert len(set(drawn)) > 2900
