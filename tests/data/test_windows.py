"""Text sources, packing, cropping, evaluation windows and overlap, with a tokenizer of one token a word."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pruneengine.data.sources import documents
from pruneengine.data.windows import as_samples, check_overlap, evaluation_windows, load_samples, parse_spec

WORDS = 4000
EOS = WORDS + 1
SHARED = Path(__file__).parents[3] / "shared" / "data"
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
