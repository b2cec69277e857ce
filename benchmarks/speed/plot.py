"""Plots of the ops, from ``results/ops.csv`` alone: ``python -m benchmarks.speed.plot [--results DIR]``.

``ops-<cpu|cuda>-ratio.png`` shows how many times faster than eager torch each case is; ``-roofline.png`` compares the
bytes per second that each case moves with the machine's limit. Drawn is the newest run of each case on the headline
shapes in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pruneengine.bench.environment import RESULTS
from pruneengine.bench.providers import OURS
from pruneengine.bench.record import read
from pruneengine.bench.targets import HEADLINE
from pruneengine.common.optional_imports import require_extra

Line = Mapping[str, str]
RUN = ("device", "threads", "versions", "commit", "date")
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
COLOURS = {"cpp": "#4477aa", "triton": "#228833", "cuda": "#66a61e"}
BASELINES = {"compile": "v", "eager-out": "s", "kthvalue": "o", "squares": "D", "wanda-loop": "^"}


def newest(lines: Sequence[Line], on: str, headline: set[str] = HEADLINE) -> list[dict[tuple[str, str], Line]]:
    """Per case the lines ``{(provider, quantity): line}`` of its last run with one of our providers, fewest threads."""
    runs: dict[str, dict[tuple[str, ...], dict[tuple[str, str], Line]]] = {}
    for line in lines:
        if line["on"] == on and line["dtype"] == "bf16" and line["shape"] in headline:
            run = runs.setdefault(line["case"], {}).setdefault(tuple(line[name] for name in RUN), {})
            run[line["provider"], line["quantity"]] = line
    drawn = []
    for found in runs.values():
        ours = [run for run in found.values() if any(provider in OURS for provider, _ in run)]
        if ours:
            fewest = min(_threads(run) for run in ours)
            drawn.append([run for run in ours if _threads(run) == fewest][-1])
    return drawn


def provider_of(run: Mapping[tuple[str, str], Line]) -> str:
    """The one of ours that an op runs on by default."""
    return next(name for name in OURS if (name, "time") in run)


def draw(lines: Sequence[Line], on: str, folder: Path, headline: set[str] = HEADLINE) -> list[Path]:
    """The plots of one kind of device for which something was measured; says so where one alone has nothing."""
    found = newest(lines, on, headline)
    if not found:
        return []
    with require_extra("bench"):
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    written = []
    for name, kept, plot, needed in PLOTS:
        runs = [run for run in found if kept(run)]
        if not runs:
            print(f"no ops-{on}-{name}.png: no case with {needed}")
            continue
        figure, axes = plt.subplots(figsize=(9, 1.5 + 0.23 * len(runs)), dpi=120, layout="constrained")
        title = plot(axes, runs)
        figure.suptitle(_title(runs, title), fontsize=9, x=0.01, ha="left")
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        written.append(folder / f"ops-{on}-{name}.png")
        figure.savefig(written[-1])
        plt.close(figure)
    return written


def _ratios(axes, runs) -> str:
    runs = sorted(runs, key=lambda run: -_ratio(run, "reference"))
    values = [_ratio(run, "reference") for run in runs]
    axes.barh(_labels(runs), values, color=[COLOURS[provider_of(run)] for run in runs])
    for place, value in enumerate(values):
        axes.text(value * 1.05, place, f"{value:.1f}x" if value < 10 else f"{value:.0f}x", va="center", fontsize=8)
    for name, marker in BASELINES.items():
        found = [(_ratio(run, name), place) for place, run in enumerate(runs) if (name, "time") in run]
        if found:
            axes.plot(*zip(*found, strict=True), marker, color="black", markersize=4, label=f"than {name}")
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than eager torch (logarithmic)")
    axes.set_xlim(right=2 * max(values))
    _legend(axes, runs)
    return "the ops against eager torch"


def _roofline(axes, runs) -> str:
    runs = sorted(runs, key=lambda run: -_rate(run, provider_of(run)))
    values = [_rate(run, provider_of(run)) for run in runs]
    longest = max(values)
    axes.barh(_labels(runs), values, color=[COLOURS[provider_of(run)] for run in runs])
    for place, (run, value) in enumerate(zip(runs, values, strict=True)):
        share = run.get((provider_of(run), "share"))
        text = f"{value:.3g}" + (f" ({float(share['median']):.0%} of {share['unit']})" if share else "")
        axes.text(longest * 0.008, place, text, va="center", fontsize=8, bbox=PAPER)
    for limit, style in (("read", "--"), ("copy", ":")):
        rates = sorted(_rate(run, limit) for run in runs if (limit, "rate") in run)
        if rates:
            middle = rates[len(rates) // 2]
            axes.axvline(middle, color="black", linestyle=style, label=f"{limit}: {middle:.3g} GB/s")
    axes.set_xlabel("GB/s of the bytes that must move")
    _legend(axes, runs)
    return "the ops against the machine's own bandwidth"


PLOTS = (
    ("ratio", lambda run: ("reference", "time") in run, _ratios, "a time of eager torch (the provider reference)"),
    ("roofline", lambda run: run[provider_of(run), "rate"]["unit"] == "GB/s", _roofline, "a rate in GB/s"),
)


def _legend(axes, runs) -> None:
    for name in dict.fromkeys(map(provider_of, runs)):
        axes.barh([0], [0], color=COLOURS[name], label=name)
    axes.legend(loc="lower right", fontsize=8)


def _labels(runs) -> list[str]:
    first = [next(iter(run.values())) for run in runs]
    return [f"{line['op']}: {line['variant']}" for line in first]


def _title(runs, what: str) -> str:
    lines = [next(iter(run.values())) for run in runs]
    last = max(lines, key=lambda line: line["date"])
    threads = f"{last['threads']} thread{'s' * (last['threads'] != '1')}, " if last["on"] == "cpu" else ""
    return f"{what}, bfloat16\n{last['device']}, {threads}{last['versions']}, {last['date']}"


def _ratio(run, base: str) -> float:
    return float(run[base, "time"]["median"]) / float(run[provider_of(run), "time"]["median"])


def _rate(run, provider: str) -> float:
    return float(run[provider, "rate"]["median"])


def _threads(run) -> int:
    return int(next(iter(run.values()))["threads"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of ops.csv, where the plots go too")
    folder = parser.parse_args().results
    path = folder / "ops.csv"
    if not path.exists():
        sys.exit(f"{path} is missing: run `pruneengine bench` first")
    lines = read(path)
    written = [plot for on in ("cpu", "cuda") for plot in draw(lines, on, folder)]
    print(*(f"written: {plot}" for plot in written), sep="\n")
    if not written:
        sys.exit(f"{path} holds no case of ours on the headline shapes in bfloat16")


if __name__ == "__main__":
    main()
