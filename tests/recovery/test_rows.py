"""Text to rows: masks of prompts, windows, the order in which a run reads them, and data that will not do."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pruneengine.data.rows import alpaca_prompt, rows_to_text
from pruneengine.model.loss import IGNORED
from pruneengine.recovery import RecoverConfig, TokenRows, load_rows, read_recovery_recipe
from pruneengine.recovery.rows import collate, training_order

PAIR = {"instruction": "Name a colour.", "input": "", "output": "Blue."}


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and one merge across the border of prompt and answer: a newline with the B of Blue."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "ĊB", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "B")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def write(folder, *rows):
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_prompts_are_masked_up_to_the_first_token_of_the_answer(tmp_path, tokenizer):
    prompt, answer = alpaca_prompt(PAIR)
    other = PAIR | {"output": "red", "input": "warm ones"}
    rows = load_rows(RecoverConfig(data=write(tmp_path, PAIR, other), cutoff=400), tokenizer)
    labels = collate([rows[0], rows[1]])["labels"]
    trained = [tokenizer.decode(row[row != IGNORED]) for row in labels]
    # The newline belongs to the first answer's first token, so that token is trained on.
    assert trained == ["\nBlue.</s>", "red</s>"]
    assert tokenizer.decode(rows.tokens[0]) == prompt + answer + "</s>"
    assert rows.predicted == len("nlue.") + 1 + len("red") + 1


def test_a_text_column_beside_the_instructions_does_not_unmask_the_prompt(tmp_path, tokenizer):
    plain = load_rows(RecoverConfig(data=write(tmp_path, PAIR, PAIR), cutoff=400), tokenizer)
    rendered = PAIR | {"text": "".join(alpaca_prompt(PAIR))}
    both = load_rows(RecoverConfig(data=write(tmp_path, rendered, rendered), cutoff=400), tokenizer)
    assert both.masked == plain.masked
    assert both.hash == plain.hash
    # As running text, for calibration, the column is taken as it stands.
    assert rows_to_text([PAIR | {"text": "written"}], "x") == ["written"]
    only = {"instruction": "Name a colour.", "text": "word " * 200}
    assert set(load_rows(RecoverConfig(data=write(tmp_path, only), cutoff=16), tokenizer).masked) == {1}


def test_long_rows_are_cut_and_rows_without_room_left_out(tmp_path, tokenizer):
    long = PAIR | {"instruction": "word " * 60}
    prompt = len(tokenizer(alpaca_prompt(PAIR)[0])["input_ids"])
    data = write(tmp_path, PAIR, long, PAIR | {"output": "Blue, as " * 40})
    rows = load_rows(RecoverConfig(data=data, cutoff=prompt + 20), tokenizer)
    assert [len(row) for row in rows.tokens] == [prompt + len("lue.") + 1, prompt + 20]
    assert rows.report["sources"][0] == {"source": data, "rows": 2, "rows_cut": 2, "rows_without_answer": 1}
    with pytest.raises(ValueError, match=r"0 rows with an answer within 30 tokens, 1 needed \(3 rows, 3 without"):
        load_rows(RecoverConfig(data=data, cutoff=30), tokenizer)


def test_text_becomes_windows_all_of_them_or_as_many_as_asked(tmp_path, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i} of this text." for i in range(20)))
    every = load_rows(RecoverConfig(data=str(path), cutoff=16), tokenizer)
    text = tokenizer.decode(torch.cat(every.tokens))
    assert text.startswith("Paragraph 0 of this text.</s>Paragraph 1")
    assert set(every.masked) == {1}
    some = load_rows(RecoverConfig(data=str(path), cutoff=16, rows=5), tokenizer)
    assert len(some) == 5
    known = {tuple(row.tolist()) for row in every.tokens}
    assert len(every) > 20
    assert any(tuple(row.tolist()) not in known for row in some.tokens)  # documents in another order
    mixed = load_rows(RecoverConfig(data=f"{path}:2,{write(tmp_path, PAIR, PAIR)}:2", cutoff=200), tokenizer)
    assert [len(row) for row in mixed.tokens][:2] == [200, 200]
    assert [masked == 1 for masked in mixed.masked] == [True, True, False, False]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"prompt": "a", "answer": "b"}], "columns answer, prompt; expected instruction, output and optionally input"),
        ([{"instruction": "a"}], "columns instruction; expected instruction, output"),
        ([PAIR, {"instruction": "a"}], "row 2 has no instruction and output like row 1"),
        ([PAIR, PAIR | {"output": None}], "row 2 has no instruction and output"),
        ([PAIR, "text"], "row 2 has no instruction and output"),
    ],
)
def test_data_that_will_not_do_is_named(tmp_path, tokenizer, rows, message):
    with pytest.raises(ValueError, match=message):
        load_rows(RecoverConfig(data=write(tmp_path, *rows)), tokenizer)


def test_too_few_rows_and_missing_files_are_named(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="2 rows with an answer within 256 tokens, 5 needed"):
        load_rows(RecoverConfig(data=write(tmp_path, PAIR, PAIR), rows=5), tokenizer)
    with pytest.raises(ValueError, match=r"'absent\.jsonl' does not exist"):
        RecoverConfig(data="absent.jsonl").check_sources()
    with pytest.raises(ValueError, match="data 'self' needs a number of windows"):
        RecoverConfig(data="self").check_sources()
    RecoverConfig(data="self:4").check_sources()


def test_rows_split_and_hash():
    tokens = tuple(torch.arange(2 + i) for i in range(10))
    rows = TokenRows(tokens, (1,) * 10)
    train, validation = rows.split(3, seed=0)
    lengths = sorted(len(row) for row in (*train.tokens, *validation.tokens))
    assert (len(train), len(validation), lengths) == (7, 3, list(range(2, 12)))
    assert rows.hash == TokenRows(tokens, (1,) * 10).hash
    assert rows.hash != TokenRows(tokens, (1,) * 9 + (2,)).hash
    assert rows.split(0, seed=0)[1] is None
    with pytest.raises(ValueError, match=r"row 0: .* with 2 masked"):
        TokenRows((torch.arange(2),), (2,))
    batches = list(validation.batches(2))
    assert [len(batch["labels"]) for batch in batches] == [2, 1]
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in batches) == validation.predicted


def test_a_run_reads_every_row_once_an_epoch_and_sorts_inside_a_step():
    lengths = [7, 3, 9, 1, 5, 8, 2]
    order = training_order(lengths, steps=99, batch=4, epochs=2, seed=3)
    assert len(order) == 14
    assert sorted(order) == sorted([*range(7)] * 2)
    for start in range(0, 14, 4):
        step = [lengths[i] for i in order[start : start + 4]]
        assert step == sorted(step)
    assert len(training_order(lengths, steps=5, batch=4, epochs=None, seed=3)) == 20
    assert order != training_order(lengths, steps=99, batch=4, epochs=2, seed=4)


def test_steps_and_their_parts_follow_the_rows():
    config = RecoverConfig()
    assert (config.steps(50_000), config.warmup_steps(1563), config.eval_steps(1563)) == (1563, 100, 100)
    assert (config.steps(10), config.warmup_steps(30), config.eval_steps(30)) == (1, 3, 7)
    assert [config.validation_rows(n) for n in (50_000, 900, 5)] == [2000, 90, 0]
    assert RecoverConfig(val_fraction=0.5).validation_rows(9) == 4
    assert RecoverConfig(max_steps=7).steps(50_000) == 7
    # 192.5 rows are read as 192: a fourth step would have no rows of its own.
    config = RecoverConfig(epochs=2.5)
    order = training_order([5] * 77, config.steps(77), config.batch, config.epochs, seed=0)
    assert (config.steps(77), len(order)) == (3, 3 * config.batch)


def test_a_recipe_whose_recovery_is_no_config_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for content in ("recovery: {data: builtin}", "recovery: builtin", "recovery: {config: 3}"):
        recipe.write_text(content)
        with pytest.raises(ValueError, match="expected keys and values under recovery: config"):
            read_recovery_recipe(recipe)
