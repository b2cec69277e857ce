"""Results of the HyWIA study as a CSV file, tables and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hywia.cells import DENSE, LLM_PRUNER, Cell
from pruneengine.bench.record import write_lines

Results = Mapping[Cell, Mapping[str, Any]]
VARIANTS = ("hywia a", "hywia b", "hywia c")


def write_csv(path: Path, results: Results, setting: Mapping[str, str]) -> None:
    """A line a cell; ``loss_difference`` and its standard error are paired with the dense model over the windows."""
    dense = results.get(Cell(DENSE))
    lines = []
    for cell, found in results.items():
        difference, error = _paired([_minus(found, dense)]) if dense and cell.method != DENSE else (0.0, 0.0)
        line = {
            "method": cell.method, "ratio": cell.ratio, "shape": cell.shape, "seed": cell.seed,
            "reached": found.get("reached", 0.0), "perplexity": found["perplexity"], "nll": found["nll"],
            "loss_difference": difference, "standard_error": error, "tokens": found["tokens"],
            "fit_seconds": found.get("stages", {}).get("fit", 0.0), "commit": found["commit"],
        }  # fmt: skip
        lines.append(line | setting)
    write_lines(path, lines, list(lines[0]))


def tables(results: Results) -> str:
    """Perplexity by seed for each ratio and shape, and the mean loss against that of LLM-Pruner's best metric there."""
    lines = []
    if dense := results.get(Cell(DENSE)):
        lines.append(f"dense: perplexity {dense['perplexity']:.2f} over {dense['tokens']:,} tokens")
    pruned = [cell for cell in results if cell.method != DENSE]
    for ratio, shape in dict.fromkeys((cell.ratio, cell.shape) for cell in pruned):
        here = {(c.method, c.seed): results[c] for c in pruned if (c.ratio, c.shape) == (ratio, shape)}
        methods, seeds = dict.fromkeys(m for m, _ in here), sorted({s for _, s in here})
        whole = [m for m in methods if all((m, s) in here for s in seeds)]
        loss = {m: statistics.mean(here[m, s]["nll"] for s in seeds) for m in whole}
        base = min((m for m in LLM_PRUNER if m in loss), key=loss.get, default=None)
        lines.append(f"\n{ratio:.0%} {shape}; difference: mean loss less that of {base}, nats, and its standard error")
        lines.append("".join([f"{'method':<14}", *(f"{f'seed {s}':>10}" for s in seeds), f"{'mean':>10}  difference"]))
        for method in methods:
            cells = [f"{here[method, s]['perplexity']:10.2f}" if (method, s) in here else f"{'':>10}" for s in seeds]
            tail = ""
            if base is not None and method in loss:
                pairs = [_minus(here[method, s], here[base, s]) for s in seeds]
                tail = f"{math.exp(loss[method]):10.2f}  {'{:+.4f} +- {:.4f}'.format(*_paired(pairs))}"
            lines.append(f"{method:<14}{''.join(cells)}{tail}")
    return "\n".join([*lines, *_overall(results)])


def _overall(results: Results) -> list[str]:
    """Geometric mean of the perplexity over all cells, of the methods that have as many as any."""
    losses: dict[str, list[float]] = {}
    for cell, found in results.items():
        if cell.method != DENSE:
            losses.setdefault(cell.method, []).append(found["nll"])
    most = max(map(len, losses.values()), default=0)
    whole = {method: math.exp(statistics.mean(values)) for method, values in losses.items() if len(values) == most}
    return ["", f"all {most} cells of a method, geometric mean", *(f"{m:<14}{p:10.2f}" for m, p in whole.items())]


def blend_table(results: Results, ratio: float, shape: str) -> str:
    """A line a layer and kind: each variant's share of the fine score, and how far coarse and fine disagree."""
    profiles = {v: _by_group(results, v, ratio, shape) for v in VARIANTS}
    profiles = {v: groups for v, groups in profiles.items() if groups}
    if not profiles:
        return f"no blend was measured at {ratio:.0%} {shape}"
    heads = [*(f"{v}: fine" for v in profiles), "rank corr.", "both remove"]
    lines = [f"share of the fine score at {ratio:.0%} {shape}, mean over seeds"]
    lines.append(f"{'group':<18}" + "".join(f"{head:>15}" for head in heads))
    first = next(iter(profiles.values()))
    for group in first:
        values = [_mean(groups[group], "share") for groups in profiles.values()]
        values += [_mean(first[group], "correlation"), _mean(first[group], "overlap")]
        lines.append(f"{group:<18}" + "".join(f"{value:15.3f}" for value in values))
    return "\n".join(lines)


def plot(path: Path, results: Results, ratios: Sequence[float], shape: str, title: str) -> bool:
    """The blend of every layer, and below it the agreement of coarse and fine ranks; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 6.5), sharex=True, sharey="row", layout="constrained")
    for column, (kind, name) in enumerate((("mlp", "channels"), ("heads", "KV groups"))):
        top, bottom = axes[:, column]
        for variant in VARIANTS:
            series = _by_layer(_by_group(results, variant, max(ratios), shape), kind, "share")
            top.plot(*_line(series), marker=".", label=f"variant {variant[-1]}")
            top.fill_between(*_range(series), alpha=0.15, linewidth=0)
        top.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
        top.set(title=f"{name}: share of the fine score, {max(ratios):.0%} {shape}", ylim=(-0.02, 1.02))
        for number, ratio in enumerate(sorted(ratios)):
            groups = next((g for v in VARIANTS if (g := _by_group(results, v, ratio, shape))), {})
            if number == 0:
                correlation = _by_layer(groups, kind, "correlation")
                bottom.plot(*_line(correlation), marker=".", color="black", label="rank correlation (Spearman)")
                bottom.fill_between(*_range(correlation), color="black", alpha=0.12, linewidth=0)
            overlap = _by_layer(groups, kind, "overlap")
            bottom.plot(*_line(overlap), marker=".", label=f"removed by both alone, {ratio:.0%}")
        bottom.set(title=f"{name}: do coarse and fine agree?", xlabel="decoder layer", ylim=(-1.02, 1.02))
        top.legend()
        bottom.legend()
    figure.suptitle(f"{title}\nlines: mean over calibration seeds; bands: their range")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True


def _minus(found: Mapping[str, Any], base: Mapping[str, Any]) -> list[float]:
    return [a - b for a, b in zip(found["per window"], base["per window"], strict=True)]


def _paired(pairs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean and standard error over windows, each window first averaged over the seeds (they share its text)."""
    windows = [statistics.mean(column) for column in zip(*pairs, strict=True)]
    error = statistics.stdev(windows) / math.sqrt(len(windows)) if len(windows) > 1 else float("nan")
    return statistics.mean(windows), error


def _by_group(results: Results, method: str, ratio: float, shape: str) -> dict[str, list[dict[str, Any]]]:
    """The blend rows of every group, one a seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell, found in results.items():
        if (cell.method, cell.ratio, cell.shape) == (method, ratio, shape):
            for row in found["blends"]:
                groups.setdefault(row["group"], []).append(row)
    return groups


def _by_layer(groups: Mapping[str, list[dict[str, Any]]], kind: str, name: str) -> dict[int, list[float]]:
    found = {int(g.split(".")[1]): [row[name] for row in rows] for g, rows in groups.items() if g.endswith(kind)}
    return {layer: values for layer, values in found.items() if not any(map(math.isnan, values))}


def _line(series: Mapping[int, list[float]]) -> tuple[list[int], list[float]]:
    return list(series), [statistics.mean(values) for values in series.values()]


def _range(series: Mapping[int, list[float]]) -> tuple[list[int], list[float], list[float]]:
    return list(series), [min(v) for v in series.values()], [max(v) for v in series.values()]


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.mean(row[name] for row in rows)
