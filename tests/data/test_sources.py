"""Documents of every source: local files, data sets of the hub, and the text that Python carries."""

import json
import sys

import pytest
import torch

from pruneengine.data import text_files
from pruneengine.data.rows import alpaca_prompt, rows_to_text
from pruneengine.data.samples import Samples, check_overlap
from pruneengine.data.sources import HUB, builtin_halves, check_source, documents


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
        ('{"text": "a"}\n{"text": 3}', "row 2: text is int, expected a string"),
        ('{"text": "a"}\n{"text": "\\ud83d"}', r"a\.jsonl: row 2: text holds half of a surrogate pair"),
        ('{"instruction": "a\\u0000", "output": "b"}', r"a\.jsonl: row 1: text holds a NUL character"),
        ('{"messages": "hello"}', "row 1: messages must be a list of objects with role and content, got 'hello'"),
        ('{"messages": [{"role": "user"}]}', "row 1: messages must be a list of objects with role and content"),
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


def test_rows_with_an_empty_text_column_are_read_by_their_other_columns():
    row = {"text": None, "instruction": "Add.", "input": "1, 2", "output": "3"}
    assert rows_to_text([row], "x") == rows_to_text([{k: v for k, v in row.items() if k != "text"}], "x")
    with pytest.raises(ValueError, match="x: row 2 has no text like row 1"):
        rows_to_text([{"text": "a"}, row], "x")


def test_chats_are_written_by_the_template_of_the_tokenizer(tmp_path):
    class Tokenizer:
        chat_template = "some"

        def apply_chat_template(self, messages, tokenize):
            assert not tokenize
            return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n")
    check_source(str(path))
    assert documents(str(path), tokenizer=Tokenizer()) == ["<user>Why?<assistant>Because."]
    plain = Tokenizer()
    plain.chat_template = None
    with pytest.raises(ValueError, match=r"chats\.jsonl: row 1 is a chat, and the tokenizer has no chat template"):
        documents(str(path), tokenizer=plain)


def test_a_source_is_read_once_when_it_was_checked_and_anew_afterwards(tmp_path, monkeypatch):
    path, reads = tmp_path / "a.txt", []
    path.write_text("one\n\ntwo")
    read = text_files._file_rows
    monkeypatch.setattr(text_files, "_file_rows", lambda path: reads.append(path) or read(path))
    check_source(str(path))
    assert documents(str(path)) == documents(str(path)) == ["one", "two"]
    assert len(reads) == 2
