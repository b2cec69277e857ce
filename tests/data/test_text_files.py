"""Text files as users have them: every kind is read, and each fault names its file and row."""

import gzip
import io
import json
import sys

import pytest

from pruneengine.data import text_files
from pruneengine.data.text_files import check_text, is_text_source, kind_of, read_rows

ROWS = [{"text": "one"}, {"text": "zwei, drei"}]
LINES = "\n".join(json.dumps(row) for row in ROWS)


def named(value):
    """Name parameters alike in every process that collects the tests: compressed bytes hold the time."""
    return "content" if isinstance(value, bytes) else None


@pytest.fixture(autouse=True)
def nothing_cached():
    text_files._kept.clear()
    text_files._standard_input.cache_clear()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.JSONL", LINES.encode()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", LINES.encode()),
        ("a.json.gz", gzip.compress(LINES.encode())),
        ("a.jsonl.gz", gzip.compress(LINES.encode())),
        ("a.JSON.GZ", gzip.compress(json.dumps(ROWS).encode())),
        ("a.csv", b'text\none\n"zwei, drei"\n'),
        ("a.csv", b'\xef\xbb\xbftext\r\none\r\n"zwei, drei"\r\n'),
        ("a.csv.gz", gzip.compress(b'text\none\n"zwei, drei"\n')),
        ("a,b:3.jsonl", LINES.encode()),
    ],
    ids=named,
)
def test_rows_of_every_kind(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert is_text_source(str(tmp_path / name))
    assert read_rows(str(tmp_path / name)) == ROWS


def test_parquet_and_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    assert read_rows(str(tmp_path / "a.parquet")) == read_rows(str(tmp_path / "saved")) == ROWS
    assert read_rows(str(tmp_path / "splits" / "train")) == ROWS
    with pytest.raises(ValueError, match=r"several splits \(train, test\); name the folder of one"):
        read_rows(str(tmp_path / "splits"))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet: not a parquet file"):
        read_rows(str(tmp_path / "bad.parquet"))


def test_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(LINES.encode()))
    assert read_rows(str(tmp_path / "a.jsonl.zst")) == ROWS
    frames = [zstandard.ZstdCompressor().compress(line.encode()) for line in LINES.splitlines(keepends=True)]
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(frames))
    assert read_rows(str(tmp_path / "b.jsonl.zst")) == ROWS


def test_hidden_files_of_a_folder_are_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "._a.txt").write_bytes(b"\xff\xfe\0")
    assert read_rows(str(tmp_path)) == ["one"]


def test_paragraphs_of_a_text_file_end_at_blank_lines_and_a_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\nline\r\n\r\n \nsecond\n")
    assert read_rows(str(tmp_path / "a.txt")) == ["first\nline", "second"]


def test_a_folder_is_its_files_in_order_of_their_names(tmp_path):
    (tmp_path / "b.txt").write_text("last")
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "c.md").write_text("not read")
    assert read_rows(str(tmp_path)) == [*ROWS, "last"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no file that ends in \.txt, \.jsonl"):
        read_rows(str(tmp_path / "empty"))


@pytest.mark.parametrize(("content", "rows"), [(LINES, ROWS), ("one\n\ntwo\n", ["one", "two"])])
def test_standard_input_is_read_once(monkeypatch, content, rows):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert is_text_source("-")
    assert read_rows("-") == read_rows("-") == rows


def test_a_file_that_changed_is_read_anew(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    assert read_rows(str(file)) == ["one"]
    file.write_text("another")
    assert read_rows(str(file)) == ["another"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            "gr\u00fcn\n".encode("latin-1"),
            r"a\.txt: line 1 is not UTF-8 \(byte 0xfc\): save the file as UTF-8",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a\.jsonl: line 2 is not UTF-8"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt is UTF-16: save it as UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text":', r"a\.jsonl: line 3 is not JSON: Expecting value at column 9"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1 is not JSON"),
        ("a.json", b"{", r"a\.json: not JSON"),
        ("a.json.gz", b"no gzip", r"a\.json\.gz: not a whole gzip file"),
        ("a.json.gz", gzip.compress(LINES.encode())[:-9], r"a\.json\.gz: not a whole gzip file"),
        ("a.json.gz", gzip.compress(LINES.encode())[:10] + b"\xff" * 40, r"a\.json\.gz: not a whole gzip file"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"a\.jsonl: line 1 is not JSON"),
        ("a.json", b'{"text": ' + b"9" * 5000 + b"}", r"a\.json: not JSON"),
        ("a.csv", b"text,more\none\n", r"a\.csv: line 2 has not the columns text, more"),
        ("a.csv", b'text\n"one', r"a\.csv: not CSV near line 1"),
        ("a.md", b"text", r"a\.md: expected a file that ends in \.txt"),
    ],
    ids=named,
)
def test_what_is_no_text_names_the_file_and_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(str(tmp_path / name))


def test_a_field_of_a_table_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "long " * 100_000 + "\n")
    assert len(read_rows(str(tmp_path / "a.csv"))[0]["text"]) == 500_000


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.txt' does not exist"):
        read_rows(str(tmp_path / "nothing.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "row 3: text is NoneType, expected a string"),
        (b"bytes", "row 3: text is bytes, expected a string"),
        ("a\0b", "row 3: text holds a NUL character at position 1"),
        ("ab\ud83d", r"row 3: text holds half of a surrogate pair, \\ud83d, at position 2"),
    ],
)
def test_what_is_no_text_of_a_row(text, message):
    with pytest.raises(ValueError, match=message):
        check_text(text, "row 3")
    assert check_text("gr\u00fcn \U0001f333", "row 3") == "gr\u00fcn \U0001f333"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.TXT", ".txt"),
        ("a.json.GZ", ".json"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a", None),
        ("a.b.csv.zst", ".csv"),
    ],
)
def test_kinds_are_told_by_the_end_of_the_name(name, kind, tmp_path):
    assert kind_of(tmp_path / name) == kind
