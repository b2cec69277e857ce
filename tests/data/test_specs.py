"""Specs of texts: sources with counts, also where names hold commas and colons."""

import pytest

from pruneengine.data.specs import check_spec, parse_spec


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("c4", [("c4", None)]),
        ("c4:64, alpaca.jsonl:3", [("c4", 64), ("alpaca.jsonl", 3)]),
        ('"a,b.txt":2,c4:3', [("a,b.txt", 2), ("c4", 3)]),
        ('"a:1.txt"', [("a:1.txt", None)]),
        ('"a, b:1.txt"', [("a, b:1.txt", None)]),
        ("-", [("-", None)]),
    ],
)
def test_sources_and_counts(spec, parts):
    assert parse_spec(spec) == parts


def test_a_path_that_exists_needs_no_quotes(tmp_path):
    for name in ("a,b.txt", "a:3.txt", "plain.txt"):
        (tmp_path / name).write_text("text")
        path = str(tmp_path / name)
        assert parse_spec(path) == [(path, None)]
        assert parse_spec(path, 4) == [(path, 4)]
    path = str(tmp_path / "a:3.txt")
    assert parse_spec(f"c4:2,{tmp_path / 'plain.txt'}:5") == [("c4", 2), (str(tmp_path / "plain.txt"), 5)]
    assert parse_spec(f'"{path}":7') == [(path, 7)]


@pytest.mark.parametrize("spec", ["", " ", ",", "a,", "a:0", "a:x", ":3", '"":3', '"a":', '"a', "\0"])
def test_what_is_no_spec_is_named(spec):
    with pytest.raises(ValueError, match=r"spec|unknown text source"):
        check_spec(spec, None, default=1)


@pytest.mark.parametrize("spec", ["c4:1,,ptb:2", "c4:1,ptb:2,", 'c4:1,"ptb:2', 'c4"ptb:2'])
def test_a_part_without_a_name_or_a_quote_without_its_end_is_not_passed_over(spec):
    with pytest.raises(ValueError, match="an empty source, or a quote without its end"):
        parse_spec(spec)


def test_text_that_is_none_is_found_before_a_model_is_loaded(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}')
    with pytest.raises(ValueError, match=r"a\.jsonl: row 2 has no text like row 1"):
        check_spec(str(tmp_path / "a.jsonl"), None, default=1)


def test_only_evaluation_text_may_be_mixed_without_counts(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for path in paths:
        (tmp_path / path).write_text("text")
    assert check_spec(",".join(paths), None, default=1) is None
    with pytest.raises(ValueError, match="expected a count for every source of a mix"):
        check_spec(",".join(paths), None, default=1, counted=True)


@pytest.mark.parametrize(
    ("spec", "message"), [("self", "own samples measure nothing"), ("alpaca", "alpaca has no evaluation split")]
)
def test_what_is_no_evaluation_text_is_refused_before_it_is_read(spec, message):
    assert check_spec(spec, None, default=3) == 3
    with pytest.raises(ValueError, match=message):
        check_spec(spec, None, default=3, role="evaluation")
