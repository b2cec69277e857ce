"""The quality study on a tiny model: what it keeps, what it repeats, what it writes."""

import csv
import dataclasses
import functools
import sys
import types

import pytest
import torch

from benchmarks.quality import cells as quality_cells
from benchmarks.quality import models as quality_models
from benchmarks.quality import run as quality
from benchmarks.quality.cells import RECOVERY, SPEED, TEXT, Cell, Study, cells
from benchmarks.quality.models import DENSE, ROWS, Models, Variant
from benchmarks.quality.report import tables, write_csv
from pruneengine import PruneConfig, find_groups
from pruneengine.data.samples import as_samples
from pruneengine.structured.prune import decide
from tests.helpers.tiny import tiny_model, tiny_tokens
from tests.helpers.tiny_tasks import VOCABULARY, byte_tokenizer, write_task

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
TASKS = ("piqa_tiny", "winogrande_tiny")
SOME = (DENSE, "param_first", "adapruner", "wanda", "magnitude_l1", "random")


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    data: str = "text"
    strength: float = 0.01
    seed: int = 0
    stopped: str | None = None

    def to_dict(self):
        return dataclasses.asdict(self)


@pytest.fixture
def trained(monkeypatch):
    """A recovery that only moves the weights, and the work folders it was called with."""
    calls = []

    def recover(model, tokenizer, config, *, work_dir):
        calls.append(work_dir.name)
        with torch.no_grad():
            model.model.norm.weight.mul_(1 + config.strength * (1 + config.seed))
        return types.SimpleNamespace(stopped=config.stopped)

    monkeypatch.setattr(quality_models, "recover", recover)
    monkeypatch.setattr(quality_models, "RecoverConfig", FakeConfig)
    return calls


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    """Speeds from a few tokens: here only their places in the table matter."""
    for name in ("measure_speed", "measure_speed_pair"):
        whole = getattr(quality_cells, name)
        monkeypatch.setattr(quality_cells, name, functools.partial(whole, prompt_tokens=4, new_tokens=2, repeats=1))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What does not change between studies."""
    folder = tmp_path_factory.mktemp("tasks")
    for number, task in enumerate(TASKS):
        write_task(folder, task, items=4 + number)
    model = tiny_model(vocab_size=VOCABULARY)
    report = decide(model, find_groups(model), None, PruneConfig(method="magnitude_l2", ratio=0.4, round_to=1))
    report.plan.save(folder / "plan.json")
    return model, folder


def make_study(parts, cache, limit=3, recovery=None, window=16, **changes):
    model, folder = parts
    samples = {seed: as_samples(tiny_tokens(6, seed=seed)) for seed in (0, 1)}
    plans = {("adapruner", 0.4): folder / "plan.json"}
    models = Models(model, byte_tokenizer(), samples, cache, 2, plans, recovery, **({"round_to": 1} | changes))
    return Study(models, as_samples(tiny_tokens(3, window, seed=9)), "tiny", folder, limit)


def measure_all(study, chosen):
    quality.run(study, chosen, [cell for cell in chosen if study.result(cell) is None])
    return {cell: study.result(cell) for cell in chosen}


def test_whole_columns_come_one_after_the_other(parts, tmp_path, trained):
    study = make_study(parts, tmp_path, recovery={})
    chosen = cells(study.models, SOME, (0.4, 0.6), (0, 1), ("winogrande_tiny", "piqa_tiny"))
    assert len(set(chosen)) == len(chosen)
    order = list(dict.fromkeys((c.column, c.variant.recovered) for c in chosen if c.variant.row != DENSE))
    assert order == [
        (SPEED, False), (TEXT, False), (RECOVERY, True), (TEXT, True), ("piqa_tiny", True), ("piqa_tiny", False),
        ("winogrande_tiny", True), ("winogrande_tiny", False),
    ]  # fmt: skip
    first = [c.variant for c in chosen if c.column == TEXT and not c.variant.recovered and c.variant.seed == 0]
    assert [v.row for v in first] == [*SOME, "param_first", "wanda", "magnitude_l1", "random"]
    assert [v.ratio for v in first[1:]] == [0.4] * 5 + [0.6] * 4
    again = {c.variant.row for c in chosen if c.variant.seed == 1 and not c.variant.recovered}
    assert again == {"param_first", "wanda", "random"}
    assert {c.variant.row for c in chosen if c.variant.seed == 1} == set(SOME) - {DENSE}
    assert SPEED not in {c.column for c in chosen if c.variant.seed == 1}


def test_every_cell_is_measured_once_and_reported(parts, tmp_path, trained, capsys):
    study = make_study(parts, tmp_path, recovery={})
    rows = (DENSE, "param_first", "adapruner", "magnitude_l1")
    chosen = cells(study.models, rows, (0.4,), (0, 1), TASKS)
    results = measure_all(study, chosen)
    capsys.readouterr()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert measure_all(make_study(parts, tmp_path, recovery={}), chosen) == results
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len({study.path(cell) for cell in chosen}) == len(chosen)
    assert set(trained) == {p for p in trained if p.startswith("recovery-")}

    write_csv(tmp_path / "quality.csv", results, {"device": "here"})
    lines = list(csv.DictReader((tmp_path / "quality.csv").open()))
    sizes = {line["row"]: int(line["value"]) for line in lines if line["quantity"] == "parameters"}
    assert sizes[DENSE] == sum(p.numel() for p in parts[0].parameters()) > max(sizes[row] for row in rows[1:])
    assert {line["threads"] for line in lines} == {str(torch.get_num_threads())}
    losses = {line["row"]: line for line in lines if line["quantity"] == "nll" and line["recovered"] == "0"}
    assert losses[DENSE]["difference"] == ""
    wanted = float(losses["adapruner"]["value"]) - float(losses[DENSE]["value"])
    assert float(losses["adapruner"]["difference"]) == pytest.approx(wanted, abs=1e-4)
    assert {line["count"] for line in lines if line["quantity"] == "acc_norm"} == {"3"}

    text = tables(results, rows, (0.4,), TASKS)
    table = {line.split(" | ")[0].strip("| "): line.count("–") for line in text.splitlines() if line.startswith("| ")}
    # The dense model is not recovered: one perplexity and two accuracies.
    assert table == {"": 0, "---": 0, DENSE: 3, **dict.fromkeys(rows[1:], 0)}
    assert "3 items each" in text


def test_the_recovered_model_is_another(parts, tmp_path, trained):
    study = make_study(parts, tmp_path, recovery={"strength": 0.5})
    losses = [
        study.measure(Cell(TEXT, Variant("magnitude_l1", 0.4, seed, after)))["nll"]
        for seed, after in ((0, False), (0, True), (1, True))
    ]
    assert len(set(losses)) == 3
    assert len(set(trained)) == 2


def test_a_recovery_that_stopped_early_is_no_result(parts, tmp_path, trained):
    study = make_study(parts, tmp_path, recovery={"stopped": "the loss of step 3 is nan"})
    cell = Cell(TEXT, Variant("magnitude_l1", 0.4, 0, True))
    with pytest.raises(RuntimeError, match="stopped early: the loss of step 3 is nan"):
        study.measure(cell)
    assert study.result(cell) is None


def test_a_cell_is_remade_when_what_made_it_changes(parts, tmp_path, trained):
    study = make_study(parts, tmp_path, recovery={})
    before, after = (Variant("wanda", 0.4, 0, recovered) for recovered in (False, True))
    fixed = Variant("magnitude_l1", 0.4)

    def moved(**changes):
        other = make_study(parts, tmp_path, **{"recovery": {}} | changes)
        columns = {
            "text": Cell(TEXT, before), "task": Cell("piqa_tiny", before), "after": Cell(TEXT, after),
            "fixed": Cell(TEXT, fixed), "dense": Cell(TEXT, Variant(DENSE)),
        }  # fmt: skip
        return {name for name, cell in columns.items() if other.path(cell) != study.path(cell)}

    assert moved() == set()
    assert moved(limit=2) == {"task"}
    assert moved(window=24) == {"text", "after", "fixed", "dense"}
    assert moved(recovery={"strength": 0.1}) == {"after"}
    assert moved(round_to=2) == {"text", "task", "after", "fixed"}
    assert study.models.made_by(Variant("wanda", 0.4, 1)) != study.models.made_by(before)
    assert "calibration" not in study.models.made_by(fixed)


def test_another_task_file_or_plan_is_another_cell(parts, tmp_path):
    study = make_study(parts, tmp_path)
    asked = [Cell("piqa_tiny", Variant(DENSE)), Cell("winogrande_tiny", Variant(DENSE))]
    given = Cell(TEXT, Variant("adapruner", 0.4))
    paths = [study.path(cell) for cell in (*asked, given)]
    file, plan = parts[1] / "piqa_tiny.yaml", parts[1] / "plan.json"
    contents = file.read_text(), plan.read_text()
    try:
        file.write_text(contents[0].replace("1.0", "2.0"))
        plan.write_text(contents[1] + "\n")
        now = [study.path(cell) for cell in (*asked, given)]
    finally:
        file.write_text(contents[0])
        plan.write_text(contents[1])
    assert [a == b for a, b in zip(paths, now, strict=True)] == [False, True, False]


def test_a_cell_that_fails_stays_missing(parts, tmp_path, monkeypatch, capsys):
    study = make_study(parts, tmp_path)
    chosen = [Cell(TEXT, Variant("wanda", 0.4)), Cell(TEXT, Variant(DENSE))]
    measure = study.measure

    def fail(cell):
        if cell.variant.row == "wanda":
            raise FloatingPointError("window 0\nof 3")
        return measure(cell)

    monkeypatch.setattr(study, "measure", fail)
    quality.run(study, chosen, chosen)
    assert "1/2  text of wanda 40%, seed 0: FAILED, window 0 of 3" in capsys.readouterr().out
    assert [study.result(cell) is None for cell in chosen] == [True, False]


def test_without_plan_a_row_has_no_cells(parts, tmp_path):
    study = make_study(parts, tmp_path)
    assert not study.models.exists("adapruner", 0.2)
    assert study.models.exists("adapruner", 0.4)
    assert all(study.models.exists(row, 0.2) for row, made in ROWS.items() if made)
    chosen = cells(study.models, ("adapruner",), (0.2, 0.4), (0,), ())
    assert {cell.variant.ratio for cell in chosen} == {0.4}
    assert study.models.plan(Variant("adapruner", 0.4)).reached == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    "text", ["adapruner", "adapruner@0.2", "adapruner=x", "adapruner@much=x", "dense@0.2=x", "@0.2=x"]
)
def test_a_plan_needs_a_place(text):
    with pytest.raises(ValueError, match="expected ROW@RATIO=FILE"):
        quality.parse_plan(text)


def test_the_command_line(parts, tmp_path, monkeypatch, capsys):
    model, folder = parts
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(f"Line {i} of a small text has {i * 7 % 13}." for i in range(90)))
    given = {
        "--model": tmp_path / "model", "--calibration": tmp_path / "text.txt", "--evaluation": tmp_path / "text.txt",
        "--include-path": folder, "--cache": tmp_path / "cache", "--results": tmp_path / "results", "--limit": 2,
        "--nsamples": 4, "--held-out": 2, "--seqlen": 16, "--window": 32, "--windows": 2, "--threads": 1,
        "--tasks": "piqa_tiny", "--ratios": 0.4, "--plan": f"adapruner@0.4={folder / 'plan.json'}",
    }  # fmt: skip
    command = ["run.py", *(str(part) for pair in given.items() for part in pair), "--no-recovery", "--rows"]

    def call(*more):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        quality.main()
        return capsys.readouterr().out

    listed = call("adapruner", "magnitude_l1", "--list")
    assert "text of magnitude_l1 40%, seed 0" in listed
    assert "9 of 9 cells are missing; about" in listed
    assert not (tmp_path / "results").exists()
    assert "3 of 3 cells are missing" in call("adapruner", "magnitude_l1", "--list", "--columns", "tasks")
    out = call("adapruner", "magnitude_l1")
    assert "0 of 9 cells are here" in out
    assert "| magnitude_l1 |" in out
    assert "no cell is missing" in out
    assert (tmp_path / "results" / "quality.csv").exists()
    more = call("adapruner", "magnitude_l1", "random")
    assert "9 of 12 cells are here" in more
    known = call("adapruner", "magnitude_l1", "random", "wanda", "--known")
    assert "3 of 15 cells are missing" in known
    monkeypatch.setattr(sys, "argv", [*command, "wanda", "--plan", "adapruner@0.4=nowhere.json"])
    with pytest.raises(SystemExit, match=r"quality: nowhere\.json: cannot be read as a plan"):
        quality.main()
