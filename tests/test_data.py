"""Text sources, packing, cropping, evaluation windows and overlap, with a tokenizer of one token a word."""

import io
import itertools
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pruneengine import progress
from pruneengine.data import as_samples, check_overlap, evaluation_windows, load_samples, parse_spec
from pruneengine.samples import Samples
from pruneengine.text import HUB, alpaca_prompt, builtin_halves, documents, rows_to_text

WORDS = 4000
EOS = WORDS + 1
SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared WikiText-2 and C4 text is not here")


def word_tokenizer(**special):
    vocabulary = {"<unk>": 0, **{f"w{i}": i for i in range(1, WORDS)}, "<bos>": WORDS, "<eos>": EOS}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(eos_token="<eos>")


def numbered(start, count):
    return " ".join(f"w{i}" for i in range(start, start + count))


@pytest.fixture
def corpus(tmp_path):
    """40 documents of 10 to 49 words; no word occurs twice."""
    path, start, rows = tmp_path / "corpus.jsonl", 1, []
    for length in range(10, 50):
        rows.append({"text": numbered(start, length)})
        start += length
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def tiny_llama(vocabulary=WORDS + 2):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).eval()


def test_packed_windows_are_whole_disjoint_and_counted(corpus, tokenizer):
    samples = load_samples(corpus, tokenizer, 20, 16, seed=3)
    assert samples.tokens.shape == (20, 16)
    assert samples.tokens.dtype == torch.int64
    assert samples.source == (corpus,) * 20
    words = samples.tokens[samples.tokens != EOS]
    assert len(words.unique()) == len(words), "windows overlap"
    (report,) = samples.report["sources"]
    assert report["documents"] == 40
    assert report["documents_read"] + report["documents_unread"] == 40
    assert report["tokens_used"] == 20 * 16
    assert report["tokens_read"] == report["tokens_used"] + report["tokens_left"]
    assert report["tokens_tail"] == report["tokens_read"] % 16


def test_documents_are_separated_by_eos_and_nothing_else_is_added(corpus, tokenizer):
    everything = load_samples(corpus, tokenizer, None, 2, role="evaluation").tokens.flatten()
    lengths = [len(list(run)) for word, run in itertools.groupby(everything.tolist(), lambda t: t != EOS) if word]
    assert lengths[:-1] == list(range(10, 49))
    assert int((everything == EOS).sum()) == 39
    without = load_samples(corpus, word_tokenizer(), None, 2, role="evaluation").tokens.flatten()
    assert torch.equal(without, torch.arange(1, len(without) + 1))


def test_the_seed_decides_the_draw(corpus, tokenizer):
    first, again = (load_samples(corpus, tokenizer, 8, 16, seed=1) for _ in range(2))
    other = load_samples(corpus, tokenizer, 8, 16, seed=2)
    assert first.hash == again.hash
    assert first.hash != other.hash


def test_reading_stops_when_the_pool_is_full(corpus, tokenizer):
    (report,) = load_samples(corpus, tokenizer, 2, 10).report["sources"]
    assert report["documents_unread"] > 30
    assert 4 * 2 * 10 <= report["tokens_read"] < 4 * 2 * 10 + 50


def test_blank_documents_are_left_out_and_counted(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("w1 w2", "", " \n", "w3 w4")))
    samples = load_samples(str(path), tokenizer, None, 5, role="evaluation")
    assert samples.tokens.tolist() == [[1, 2, EOS, 3, 4]]
    assert samples.report["sources"][0]["documents_empty"] == 2


def test_too_little_text_says_what_there_is(corpus, tokenizer):
    with pytest.raises(ValueError, match=r"76 windows of 16 tokens, 100 needed \(1219 tokens in 40 documents\)"):
        load_samples(corpus, tokenizer, 100, 16)
    with pytest.raises(ValueError, match="0 windows of 5000 tokens, 1 needed"):
        evaluation_windows(corpus, tokenizer, 5000)


def test_crops_come_from_distinct_long_documents(corpus, tokenizer):
    samples = load_samples(corpus, tokenizer, 9, 40, pack=False)
    steps = samples.tokens.diff(dim=1)
    assert (steps == 1).all(), "a crop crosses documents"
    starts, start = [], 1
    for length in range(10, 50):
        starts.append(range(start, start + length))
        start += length
    origin = [next(i for i, words in enumerate(starts) if row[0] in words) for row in samples.tokens.tolist()]
    assert len(set(origin)) == 9
    assert all(len(starts[i]) >= 40 for i in origin)
    (report,) = samples.report["sources"]
    assert report["documents_short"] + 9 == report["documents_read"]


def test_crops_start_anywhere(tmp_path, tokenizer):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": numbered(1, 1000)}) + "\n" for _ in range(30)))
    starts = load_samples(str(path), tokenizer, 30, 10, pack=False).tokens[:, 0]
    assert starts.min() < 300
    assert starts.max() > 700
    whole = load_samples(str(path), tokenizer, 3, 1000, pack=False).tokens
    assert torch.equal(whole, torch.arange(1, 1001).expand(3, -1))


def test_too_few_long_documents_is_an_error(corpus, tokenizer):
    with pytest.raises(ValueError, match="10 documents of at least 40 tokens, 11 needed"):
        load_samples(corpus, tokenizer, 11, 40, pack=False)


def test_evaluation_windows_are_one_stream_in_order(corpus, tokenizer):
    samples = evaluation_windows(corpus, tokenizer, 100)
    assert torch.equal(samples.tokens.flatten(), torch.arange(1, 1101))
    (report,) = samples.report["sources"]
    assert (report["windows"], report["tokens_read"], report["tokens_tail"]) == (11, 1180, 80)
    limited = evaluation_windows(corpus, tokenizer, 100, limit=4)
    assert torch.equal(limited.tokens, samples.tokens[:4])
    assert limited.report["sources"][0]["tokens_left"] == 780
    with pytest.raises(ValueError, match="11 windows of 100 tokens, 12 needed"):
        evaluation_windows(corpus, tokenizer, 100, limit=12)


def test_evaluation_joins_documents_by_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "w1 w2"}\n{"text": ""}\n{"text": "w3"}\n')

    class Recorder:
        def __call__(self, text, **options):
            self.text, self.options = text, options
            return {"input_ids": [1, 2, 3]}

    recorder = Recorder()
    evaluation_windows(str(path), recorder, 2)
    assert recorder.text == "w1 w2\n\n\n\nw3"
    assert recorder.options["add_special_tokens"] is False


def test_a_models_own_text_is_no_evaluation(tokenizer):
    with pytest.raises(ValueError, match="own samples"):
        evaluation_windows("self", tokenizer, 8)


def test_a_mix_keeps_order_and_counts(corpus, tmp_path, tokenizer):
    other = tmp_path / "other.txt"
    other.write_text(numbered(2000, 200))
    samples = load_samples(f"{other}:3, {corpus}:5", tokenizer, 8, 16)
    assert samples.source == (str(other),) * 3 + (corpus,) * 5
    assert (samples.tokens[:3] >= 2000).all()
    assert (samples.tokens[3:][samples.tokens[3:] != EOS] < 2000).all()
    alone = load_samples(corpus, tokenizer, 5, 16)
    assert torch.equal(samples.tokens[3:], alone.tokens), "a source depends on its neighbours"


@pytest.mark.parametrize(
    ("spec", "nsamples", "expected"),
    [
        ("builtin", 8, [("builtin", 8)]),
        ("builtin:8", None, [("builtin", 8)]),
        ("builtin", None, [("builtin", None)]),
        ("c4:3,a.txt:4", 7, [("c4", 3), ("a.txt", 4)]),
    ],
)
def test_parse_spec(spec, nsamples, expected):
    assert parse_spec(spec, nsamples) == expected


@pytest.mark.parametrize(
    ("spec", "nsamples", "message"),
    [
        ("", 4, "spec ''"),
        ("a,,b", 4, "spec 'a,,b'"),
        ("a:0", None, "spec 'a:0'"),
        ("a:x", None, "spec 'a:x'"),
        ("a:2,b", 4, "a count for every source"),
        ("a,b", 4, "a count for every source"),
        ("a:2,b:3", 4, "counts 5 samples, nsamples=4"),
        ("a:2,a:2", 4, "twice"),
        ("a", 0, "nsamples=0"),
    ],
)
def test_bad_specs_are_named(spec, nsamples, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(spec, nsamples)


def test_bad_arguments_are_named(corpus, tokenizer):
    with pytest.raises(ValueError, match="seqlen=1"):
        load_samples(corpus, tokenizer, 4, 1)
    with pytest.raises(ValueError, match="role='train'"):
        load_samples(corpus, tokenizer, 4, 8, role="train")
    with pytest.raises(ValueError, match="nsamples=None"):
        load_samples(corpus, tokenizer, None, 8)
    with pytest.raises(ValueError, match="nsamples=None"):
        load_samples(corpus, tokenizer, None, 8, role="evaluation", pack=False)
    with pytest.raises(ValueError, match=r"unknown text source 'wikitext': expected builtin, .*wikitext2"):
        load_samples("wikitext", tokenizer, 4, 8)
    with pytest.raises(ValueError, match=r"'no\.txt' does not exist"):
        load_samples("no.txt", tokenizer, 4, 8)


def test_txt_paragraphs_are_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n \n\nthree\n")
    assert documents(str(path)) == ["one\ntwo", "three"]


@pytest.mark.parametrize("column", ["text", "page", "sentence", "content"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_rows_of_every_format(tmp_path, column, suffix):
    rows = [{"id": 1, column: "first"}, {"id": 2, column: "second"}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    assert documents(str(path)) == ["first", "second"]


def test_json_may_hold_lines_or_strings(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"text": "first"}\n{"text": "second"}\n')
    assert documents(str(path)) == ["first", "second"]
    path.write_text('["first", "second"]')
    assert documents(str(path)) == ["first", "second"]


def test_alpaca_rows_are_rendered():
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    prompt, answer = alpaca_prompt(row)
    assert prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    assert answer == "3"
    bare, _ = alpaca_prompt({"instruction": "Add.", "input": "", "output": "3"})
    assert "Input" not in bare
    assert "paired with an input" not in bare
    assert rows_to_text([row], "x") == [prompt + "3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"title": "a", "body": "b"}', r"columns \['body', 'title'\], expected one of text"),
        ('{"text": "a"}\n{"text": 3}', "row 2 has no text"),
        ('{"text": "a"}\n{"page": "b"}', "row 2 has no text"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a"}', "row 2 has no text"),
        ("[1, 2]", "row 1 is list"),
        ('{"text": "a"}\nnonsense', "line 2 is not JSON"),
        ("", "no rows"),
    ],
)
def test_unreadable_rows_are_named(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        documents(str(path))


class Rows(list):
    column_names = ("text",)

    def __getitem__(self, key):
        return [row["text"] for row in self] if key == "text" else super().__getitem__(key)


def test_hub_names_ask_for_the_split_of_the_role(monkeypatch):
    asked = []

    def load_dataset(path, **where):
        asked.append((path, where))
        return Rows([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", load_dataset)
    assert documents("wikitext2") == ["a\n\nb"], "lines of running text are one document"
    assert documents("wikitext2", "evaluation") == ["a\n\nb"]
    assert documents("c4") == ["a", "b"]
    assert asked[0] == ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "train"})
    assert asked[1][1]["split"] == "test"
    for name in ("bookcorpus", "alpaca"):
        with pytest.raises(ValueError, match=f"{name} has no evaluation split"):
            documents(name, "evaluation")


@pytest.mark.parametrize("name", HUB)
def test_an_unreachable_hub_is_one_line_that_says_what_was_tried(name, monkeypatch):
    def load_dataset(*_args, **_where):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", load_dataset)
    with pytest.raises(OSError, match=f"{name}: {HUB[name].path} .*split train.*no route; offline") as caught:
        documents(name)
    assert "\n" not in str(caught.value)


def test_a_missing_dependency_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'pruneengine\[data\]'"):
        documents("c4")


def test_builtin_halves_are_balanced_and_share_no_line():
    calibration, evaluation = builtin_halves()
    sizes = [sum(map(len, half)) for half in (calibration, evaluation)]
    assert min(sizes) > 100_000
    assert max(sizes) < 1.05 * min(sizes)
    lines = [
        {line.strip() for text in half for line in text.splitlines() if len(line.strip()) >= 60}
        for half in (calibration, evaluation)
    ]
    assert min(map(len, lines)) > 300
    assert not lines[0] & lines[1]
    assert documents("builtin") == calibration
    assert documents("builtin-eval") == evaluation


def test_builtin_halves_share_no_run_of_words():
    halves = builtin_halves()
    words = sorted({word for half in halves for text in half for word in text.split()})
    index = {word: i for i, word in enumerate(words)}
    streams = [torch.tensor([index[word] for text in half for word in text.split()]) for half in halves]
    windows = [Samples(s[: len(s) // 64 * 64].view(-1, 64), ("builtin",) * (len(s) // 64)) for s in streams]
    assert check_overlap(*windows, ngram=24)["overlap"] == 0
    assert check_overlap(windows[0], windows[0], ngram=24)["overlap"] == 1


@pytest.mark.parametrize("special", [{"bos_token": "<bos>"}, {}])
def test_self_samples_exactly_seqlen_tokens_from_the_model(special):
    tokenizer, model = word_tokenizer(**special), tiny_llama(vocabulary=WORDS + 40)
    model.train()
    samples = load_samples("self", tokenizer, 20, 12, seed=4, model=model)
    assert model.training
    assert samples.tokens.shape == (20, 12)
    assert samples.source == ("self",) * 20
    assert samples.tokens.max() < len(tokenizer), "a padded row of the embedding was sampled"
    if special:
        assert (samples.tokens[:, 0] == WORDS).all()
    else:
        assert len(samples.tokens[:, 0].unique()) > 10
    assert load_samples("self", tokenizer, 20, 12, seed=4, model=model).hash == samples.hash
    assert load_samples("self", tokenizer, 20, 12, seed=5, model=model).hash != samples.hash


def test_self_follows_the_models_distribution():
    model = tiny_llama()
    chances = torch.tensor([0.1, 0.2, 0.7])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.full((WORDS + 2,), -50.0))
        model.lm_head.bias[7:10] = chances.log()
    tokens = load_samples("self", word_tokenizer(), 32, 30, model=model).tokens[:, 1:]
    assert set(tokens.unique().tolist()) == {7, 8, 9}
    shares = torch.stack([(tokens == i).float().mean() for i in (7, 8, 9)])
    torch.testing.assert_close(shares, chances, atol=0.06, rtol=0)


def test_self_needs_a_model(tokenizer):
    with pytest.raises(ValueError, match="expected a model"):
        load_samples("self", tokenizer, 4, 8)


def test_samples_hash_follows_content_and_shape():
    tokens = torch.arange(12).view(3, 4)
    same = Samples(tokens.clone(), ("b",) * 3)
    assert Samples(tokens, ("a",) * 3).hash == same.hash
    assert Samples(tokens.view(4, 3), ("a",) * 4).hash != same.hash
    assert Samples(tokens.flip(0), ("a",) * 3).hash != same.hash


def test_samples_batches():
    samples = as_samples(torch.arange(20).view(5, 4))
    batches = list(samples.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), samples.tokens)
    with pytest.raises(ValueError, match="batch size 0"):
        samples.batches(0)


def test_as_samples_takes_tensors_of_one_length():
    tokens = torch.arange(20).view(5, 4)
    assert torch.equal(as_samples([tokens[:2], tokens[2:]]).tokens, tokens)
    samples = as_samples(tokens)
    assert as_samples(samples) is samples
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        as_samples([tokens, tokens[:, :3]])
    with pytest.raises(ValueError, match=r"torch\.float32 \(5, 4\)"):
        as_samples(tokens.float())
    with pytest.raises(ValueError, match="0 tensors"):
        as_samples([])
    with pytest.raises(TypeError, match="str"):
        as_samples(["text"])


def test_samples_check_their_shape():
    with pytest.raises(ValueError, match="expected int64"):
        Samples(torch.zeros(2, 3), ("a", "a"))
    with pytest.raises(ValueError, match="1 names for 2 windows"):
        Samples(torch.zeros(2, 3, dtype=torch.int64), ("a",))


def test_overlap_finds_a_shared_run_at_any_offset():
    calibration = torch.randint(1000, (6, 64), generator=torch.Generator().manual_seed(0))
    calibration[5] = calibration[1]
    evaluation = torch.arange(2000, 2200).view(4, 50)
    evaluation[2, 11:43] = calibration[3, 20:52]
    evaluation[0, :31] = calibration[2, :31]
    found = check_overlap(as_samples(calibration), as_samples(evaluation))
    assert found == {
        "ngram": 32,
        "duplicate_windows": 1,
        "overlapping_windows": 1,
        "evaluation_windows": 4,
        "overlap": 0.25,
    }
    assert check_overlap(as_samples(calibration), as_samples(evaluation), ngram=31)["overlapping_windows"] == 2
    assert check_overlap(as_samples(calibration), as_samples(evaluation), ngram=99)["ngram"] == 50
    with pytest.raises(ValueError, match="ngram=0"):
        check_overlap(as_samples(calibration), as_samples(evaluation), ngram=0)


@pytest.fixture
def progress_on(monkeypatch):
    monkeypatch.setattr(progress, "START_AFTER_S", 0.02)
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "TERMINAL_EVERY_S", 0.0)
    progress.set_progress(True)
    yield
    progress.set_progress(False)


def test_progress_is_off_in_the_library(capsys, monkeypatch):
    monkeypatch.setattr(progress, "START_AFTER_S", 0.0)
    assert list(progress.track(range(3), "work")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_progress_tells_how_far_and_how_long(capsys, progress_on):
    items = []
    for item in progress.track(iter(range(4)), "work", total=4):
        time.sleep(0.03)
        items.append(item)
    lines = capsys.readouterr().err.splitlines()
    assert items == [0, 1, 2, 3]
    assert "2/4" in lines[1]
    assert all(line.startswith("work") and "left" in line for line in lines)
    assert len(lines) == 3


def test_short_work_stays_silent(capsys, monkeypatch):
    monkeypatch.setattr(progress, "START_AFTER_S", 10.0)
    progress.set_progress(True)
    try:
        assert sum(progress.track([1, 2], "work")) == 3
    finally:
        progress.set_progress(False)
    assert capsys.readouterr().err == ""


def test_a_terminal_line_is_erased_when_the_work_is_stopped(monkeypatch, progress_on):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    steps = progress.track(range(9), "work")
    next(steps)
    time.sleep(0.03)
    next(steps)
    assert "1/9" in sys.stderr.getvalue()
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert sys.stderr.getvalue().endswith("\r\x1b[K")


@needs_shared
def test_real_wikitext_and_c4_do_not_overlap(tokenizer):
    def words(spec):
        text = "\n\n".join(documents(str(SHARED / spec)))
        ids = torch.tensor([int.from_bytes(word.encode()[:7], "little") for word in text.split()])
        return as_samples(ids[: len(ids) // 128 * 128].view(-1, 128))

    c4, validation, test = (
        words(f"{p}.jsonl") for p in ("c4/c4_demo", "wikitext2/validation_rows", "wikitext2/test_rows")
    )
    assert len(test) > 1500
    assert check_overlap(c4, test)["overlap"] < 0.01
    assert check_overlap(validation, test)["overlap"] < 0.01


@needs_shared
def test_real_files_of_every_schema_load(tokenizer):
    c4, alpaca = SHARED / "c4" / "c4_demo.jsonl", SHARED / "alpaca" / "alpaca_cleaned_1000.jsonl"
    samples = load_samples(f"{c4}:8,{alpaca}:8", tokenizer, 16, 64)
    assert samples.tokens.shape == (16, 64)
    assert len(documents(str(SHARED / "wikitext2" / "test_docs.jsonl"))) == 62
    assert "### Response:" in documents(str(alpaca))[0]
