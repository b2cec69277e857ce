"""Cost of a search trial against a naive loop: ``python -m benchmarks.search_cost.run --data DIR``.

Measures three things in one run on SmolLM2-135M. First, the stages of a trial of a real search. Second, the whole
search against a loop that copies, calibrates, slices and evaluates for every trial; a few such trials are timed between
stretches of the search. Third, the effect of early stopping, replayed over a search whose trials all ran to the end. A
stopped run continues where it was. The results go to ``benchmarks/results/search_cost.csv``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pruneengine
from benchmarks.common.models import smollm2
from benchmarks.search_cost.naive import PART, STAGES
from benchmarks.search_cost.replay import Recorded, recorded, replay
from benchmarks.search_cost.study import CostStudy, sampled, stages
from pruneengine.bench.environment import RESULTS, ROOT, versions
from pruneengine.bench.record import GateError, Row, Setting, record
from pruneengine.common.progress import set_progress
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.search import search
from pruneengine.search.adapruner.texts import search_texts
from pruneengine.search.study import reopen_study

OURS, NAIVE, WHOLE = "pruneengine", "naive loop", "naive loop, whole text"
BESIDE, TIMES, TIMES_ALL = "share beside the forward passes", "naive / ours", "naive / ours with its preparation"
STOPPED, SAVED, SURVIVES, CHANGE = "trials stopped", "blocks saved", "winner survives", "winner's loss change"
STOPS = (0.05, 0.1, 0.2)
# quantity: (provider, at most, at least)
TARGETS = {BESIDE: (OURS, 0.03, None), TIMES: (NAIVE, None, 30), CHANGE: ("stop 0.1", 0.01, None)}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    setting = Setting.here("search_cost", options.threads)
    rows: list[Row] = []
    try:
        work = load(options)
        case = f"{options.name} {options.ratio:.0%} {options.shape}, {options.windows}x{options.seqlen} tokens"
        measured = work.measure(options.naive)
        rows += cost_rows(work, measured, setting, f"{case}, {options.trials} trials")
        record(rows, options.results)
        if trials := replay_trials(work, options):
            rows += replay_rows(trials, options.orders, setting, f"{case}, {len(trials)} trials replayed")
    except (ValueError, OSError, GateError) as error:
        sys.exit(f"search_cost: {error}")
    print(table(rows), "", *verdicts(rows), sep="\n")
    for path in record(rows, options.results):
        print(f"written: {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder with c4/c4_demo.jsonl and wikitext2/validation_docs.jsonl")
    add("--calibration", help="text spec of the pool (default: of DATA, else the built-in text)")
    add("--search-text", help="text spec of the objective (default: of DATA, else the built-in text)")
    add("--model", help="folder, GGUF file or hub name (default: SmolLM2-135M-Instruct)")
    add("--ratio", type=float, default=0.2)
    add("--shape", choices=["uniform", "per-layer"], default="uniform")
    add("--trials", type=int, default=100, help="of the search")
    add("--naive", type=int, default=3, help="naive trials that are timed; 0 for none")
    add("--pool", type=int, default=128, help="calibration samples")
    add("--seqlen", type=int, default=256, help="tokens a block of the objective")
    add("--windows", type=int, default=16, help="blocks that trials see")
    add("--held-out", type=int, default=16, help="blocks that only finalists see")
    add("--full-windows", type=int, default=16, help="blocks of the whole text that a naive trial is timed on besides")
    add("--replay-trials", type=int, default=40, help="of the search without stopping that is replayed; 0 for none")
    add("--replay-study", help="replay this study in place of such a search")
    add("--replay-storage", metavar="URL", help="where that study is kept")
    add("--orders", type=int, default=10, help="orders of the trials that are replayed; the first is as recorded")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    add("--cache", type=Path, default=ROOT / ".cache" / "search_cost", help="folder of the studies and the pool")
    add("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    options = parser.parse_args()
    for name in ("full_windows", "orders", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    for name in ("naive", "replay_trials"):
        if getattr(options, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name)}")
    if options.naive > options.trials:
        parser.error(f"--naive {options.naive} is more than the search's --trials {options.trials}")
    if (options.replay_study is None) != (options.replay_storage is None):
        parser.error("--replay-study and --replay-storage belong together")
    given = options.data
    options.calibration = options.calibration or (str(given / "c4" / "c4_demo.jsonl") if given else "builtin")
    validation = str(given / "wikitext2" / "validation_docs.jsonl") if given else "builtin-eval"
    options.search_text = options.search_text or validation
    options.name = Path(options.model).name if options.model else "SmolLM2-135M-Instruct"
    return options


def load(options: argparse.Namespace) -> CostStudy:
    """The model and its texts; nothing is measured yet."""
    # Without compensation: the naive loop has none.
    config = AdaPrunerConfig(
        ratio=options.ratio, shape=options.shape, trials=options.trials, seed=options.seed, pool=options.pool,
        counts=tuple(count for count in (16, 32, 64) if count <= options.pool) or (options.pool,),
        calibration=options.calibration, search_text=options.search_text, seqlen=options.seqlen,
        windows=options.windows, held_out=options.held_out, compensate=("none",),
    )  # fmt: skip
    model, tokenizer = pruneengine.load(options.model) if options.model else smollm2()
    texts = search_texts(config, tokenizer, model)
    whole = pruneengine.evaluation_windows(config.search_text, tokenizer, config.seqlen)
    return CostStudy(model, texts, config, whole, options.full_windows, options.cache)


def cost_rows(work: CostStudy, measured: dict[str, Any], setting: Setting, case: str) -> list[Row]:
    """Rows of a trial's stages, of the whole search, and of the naive loop for as many trials."""
    packages = versions("torch", "transformers", "optuna")

    def row(provider: str, quantity: str, values: list[float], unit: str = "s") -> Row:
        return setting.row(case, provider, quantity, unit, values, packages)

    spent = [stages(trial) for trial in sampled(work.study)]
    if not spent:
        raise GateError("no trial that the sampler proposed was evaluated; search for more trials")
    totals = [sum(each.values()) for each in spent]
    rows = [row(OURS, f"trial: {stage}", [each[stage] for each in spent]) for stage in spent[0]]
    rows.append(row(OURS, "trial", totals))
    beside = [1 - each["evaluate"] / total for each, total in zip(spent, totals, strict=True)]
    rows.append(row(OURS, BESIDE, beside, "share"))
    parts = search_seconds(measured["stretches"], work.config.trials)
    rows += [row(OURS, f"search: {stage}", [seconds]) for stage, seconds in parts.items()]
    search_alone = sum(seconds for stage, seconds in parts.items() if stage not in ("statistics", "baselines"))
    rows += [row(OURS, "search", [search_alone]), row(OURS, "search with its preparation", [sum(parts.values())])]
    naive = [each["seconds"] for each in measured["naive"]]
    if not naive:
        return rows
    rows += [row(NAIVE, f"trial: {stage}", [each[stage] for each in naive]) for stage in STAGES]
    scale = work.whole.tokens.numel() / work.whole.tokens[: work.windows].numel()
    trials = {
        NAIVE: [sum(each[stage] for stage in STAGES) for each in naive],
        WHOLE: [sum(each[stage] for stage in STAGES[:-1]) + scale * each[PART] for each in naive],
    }
    for provider, each in trials.items():
        how = "trial" if provider == NAIVE else f"trial, {work.whole.tokens.numel()} tokens, evaluation x{scale:.4g}"
        whole = statistics.mean(each) * work.config.trials
        rows += [row(provider, how, each), row(provider, f"search, extrapolated from {len(each)} trials", [whole])]
        rows.append(row(provider, TIMES, [whole / search_alone], "ratio"))
        rows.append(row(provider, TIMES_ALL, [whole / sum(parts.values())], "ratio"))
    rows.append(
        row(NAIVE, "largest difference of a block's loss", [e["difference"] for e in measured["naive"]], "nats")
    )
    return rows


def search_seconds(stretches: list[dict[str, Any]], trials: int) -> dict[str, float]:
    """Wall seconds of one unbroken search by stage, from its stretches.

    The first stretch collects the statistics and runs the baselines, which the others read; the last compares the
    finalists; each finds the dense losses again. The trials are those of all stretches, scaled where some were lost.
    """
    timed = sum(stretch["trials"] for stretch in stretches)
    first, last = stretches[0]["seconds"], stretches[-1]["seconds"]
    loop = sum(stretch["seconds"]["trials"] for stretch in stretches)
    once = {stage: first[stage] for stage in ("statistics", "baselines", "dense")}
    return once | {"trials": loop * trials / timed, "finalists": last["finalists"]}


def replay_trials(work: CostStudy, options: argparse.Namespace) -> list[Recorded]:
    """Trials that all ran to the end: of the study that was named, or of a random search that is run here."""
    if options.replay_study:
        return recorded(reopen_study(options.replay_study, options.replay_storage))
    if not options.replay_trials:
        return []
    config = replace(work.config, trials=options.replay_trials, sampler="random", stop=None, finalists=1, baselines=())
    again = replace(work, config=config, label="replay")
    # The pool is the same: its statistics are there.
    search(work.model, work.texts, config, replace(again.run, cache=work.folder))
    return recorded(again.study)


def replay_rows(trials: list[Recorded], orders: int, setting: Setting, case: str) -> list[Row]:
    """Rows of what each p-value does, over the recorded order and shuffled ones."""
    packages, rows = versions("optuna", "scipy"), []
    for stop in STOPS:
        found = [replay(order, stop) for order in shuffled(trials, orders)]
        values = {
            STOPPED: [len(each.stopped) / len(trials) for each in found],
            SAVED: [each.saved / each.blocks for each in found],
            SURVIVES: [float(each.survives) for each in found],
            CHANGE: [each.change for each in found],
            f"{CHANGE}, largest": [max(each.change for each in found)],
        }
        rows += [setting.row(case, f"stop {stop:g}", name, "share", of, packages) for name, of in values.items()]
    return rows


def shuffled(trials: list[Recorded], orders: int) -> Iterator[list[Recorded]]:
    """The trials as they are, then in random orders, the same every time."""
    yield trials
    for seed in range(1, orders):
        yield random.Random(seed).sample(trials, len(trials))


def table(rows: list[Row]) -> str:
    """A line a row, under a line a case."""
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        lines += ["", case] if lines else [case]
        for row in (row for row in rows if row.case == case):
            spread = f"({row.p20:.4g} to {row.p80:.4g}, {row.rounds})" if row.rounds > 1 else ""
            lines.append(f"  {row.provider:22}  {row.quantity:46}  {row.median:10.4g} {row.unit:5}  {spread}".rstrip())
    return "\n".join(lines)


def verdicts(rows: list[Row]) -> list[str]:
    """A line for each target that was measured."""
    lines = []
    for quantity, (provider, most, least) in TARGETS.items():
        for row in (row for row in rows if (row.provider, row.quantity) == (provider, quantity)):
            met = row.median <= most if least is None else row.median >= least
            target = f"at most {most:g}" if least is None else f"at least {least:g}"
            lines.append(f"{'met' if met else 'MISSED'}: {quantity} of {provider} is {row.median:.3g}, target {target}")
    return lines


if __name__ == "__main__":
    main()
