"""What the studies of quality share: options, the setting of a result, and the names under which cells are kept."""

from argparse import Namespace
from datetime import date

import pytest

from benchmarks.common.kept import digest, keep, read_kept
from benchmarks.common.options import (
    MODEL,
    add_places,
    check_least,
    check_texts,
    load_seeds,
    model_name,
    setting_of,
    settle_texts,
    study_parser,
)
from tests.helpers.tiny_tasks import byte_tokenizer


@pytest.fixture
def parser():
    parser = study_parser("A study.", "texts", calibration="text of the pool", evaluation="text of the report")
    add_places(parser, "some", work="--cache", results="CSV file")
    return parser


def test_texts_are_those_named_else_of_the_folder_else_of_the_hub(parser, tmp_path):
    options = settle_texts(parser.parse_args([]))
    assert (options.calibration, options.evaluation) == ("c4", "wikitext2")
    assert "search" not in options
    options = settle_texts(parser.parse_args(["--data", str(tmp_path), "--calibration", "mine.txt"]))
    assert options.calibration == "mine.txt"
    assert options.evaluation == str(tmp_path / "wikitext2" / "test_docs.jsonl")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        check_texts(options)


def test_help_says_what_each_text_is_of_and_where_cells_lie(parser):
    said = " ".join(parser.format_help().split())
    assert "text of the report (default: of DATA, else wikitext2 from the hub)" in said
    assert "folder of the cells" in said
    assert parser.parse_args([]).cache.parts[-2:] == (".cache", "some")


def test_a_number_that_is_too_small_stops_with_its_option(parser, capsys):
    check_least(parser, Namespace(held_out=2), 2, "held_out")
    with pytest.raises(SystemExit):
        check_least(parser, Namespace(held_out=1), 2, "held_out")
    assert "--held-out must be at least 2, got 1" in capsys.readouterr().err


def test_a_result_says_where_with_what_and_when(parser):
    options = parser.parse_args(["--threads", "3", "--model", "some/where/small"])
    found = setting_of(options, "torch")
    assert list(found) == ["device", "threads", "versions", "date"]
    assert (found["threads"], found["date"]) == ("3", date.today().isoformat())
    assert " torch " in found["versions"]
    assert (model_name(options), model_name(parser.parse_args([]))) == ("small", MODEL)


def test_every_seed_has_samples_of_its_own(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"line {i} of {i * i % 97}" for i in range(200)))
    options = Namespace(calibration=str(text), seqlen=16, seeds=[0, 1])
    samples = load_seeds(options, None, byte_tokenizer(), 3)
    assert [of.tokens.shape for of in samples.values()] == [(3, 16)] * 2
    assert samples[0].hash != samples[1].hash


def test_a_cell_is_kept_under_a_name_of_what_made_it(tmp_path):
    made_by = {"model": "m", "config": {"ratio": 0.2, "seed": 0}}
    # What the folders of earlier runs hold must be found again.
    assert digest(made_by) == digest(dict(reversed(made_by.items()))) == "d2aafd589d7c94f1"
    path = tmp_path / "made" / f"{digest(made_by)}.json"
    assert read_kept(path) is None
    keep(path, {"perplexity": 2.5})
    assert read_kept(path) == {"perplexity": 2.5}
