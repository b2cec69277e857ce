"""Speed targets of the ops by case, for bfloat16 on the headline shapes, and the verdicts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pruneengine.bench.measure import OpRow
from pruneengine.bench.providers import OURS
from pruneengine.bench.shapes import SETS


@dataclass(frozen=True)
class Target:
    """The least speed-up over ``base``, or the least share of the machine's limit.

    ``base`` is a provider, "share" (of the limit) or "one thread" (the same op with fewer threads).
    """

    op: str
    variant: str
    base: str
    least: float


HEADLINE = {str(shape) for kind in ("weight", "tokens", "layer") for shape in SETS["headline"].of_kind(kind)}
ONE_THREAD = (
    ("weight_scores", "|W|"),
    ("taylor_scores", "|w g|"),
    ("activation_stats", "sum, squares, peak"),
    ("select_mask", "Wanda 50%, each row"),
    ("nm_mask", "2:4 of |W| norm"),
)
CPU = (
    Target("weight_scores", "|W|", "reference", 30),
    Target("weight_scores", "|W|", "share", 0.70),
    Target("taylor_scores", "|w g|", "reference", 38),
    Target("taylor_scores", "|w g|", "eager-out", 7),
    Target("taylor_scores", "|w g|", "share", 0.75),
    Target("activation_stats", "sum, squares, peak", "reference", 75),
    Target("activation_stats", "sum, squares, peak", "share", 0.65),
    Target("select_mask", "Wanda 50%, each row", "reference", 60),
    Target("select_mask", "Wanda 50%, each row", "kthvalue", 15),
    Target("nm_mask", "2:4 of |W| norm", "reference", 65),
    # With fresh memory the operating system takes most of the time, on both sides; so buffers are judged, too.
    Target("gather_columns", "keep 0.5", "reference", 8),
    Target("gather_columns", "keep 0.8", "reference", 12),
    Target("gather_rows", "keep 0.5", "reference", 1.3),
    Target("gather_rows", "keep 0.8", "reference", 1.3),
    Target("gather_columns", "keep 0.5, given buffer", "reference", 8),
    Target("gather_columns", "keep 0.8, given buffer", "reference", 12),
    Target("gather_rows", "keep 0.5, given buffer", "reference", 1.3),
    Target("gather_rows", "keep 0.8, given buffer", "reference", 1.3),
    *(Target(op, variant, "one thread", 1.7) for op, variant in ONE_THREAD),
)
MODEL = "|W| of a whole model, replayed graph"
GPU = (
    Target("weight_scores", MODEL, "share", 1 / 1.25),
    Target("nm_mask", "2:4 of one whole layer", "wanda-loop", 500),
    Target("taylor_scores_outer", "from delta and X", "share", 0.60),
)
# Every other case of these ops on a GPU: the share of the limit, 3 times eager torch, never slower than torch.compile.
GPU_SHARES = {
    **dict.fromkeys(("activation_stats", "gate_scores", "weight_scores", "taylor_scores", "block_moments"), 0.85),
    **dict.fromkeys(("kth_value", "select_mask", "kth_value_global", "select_mask_global"), 0.85),
    **dict.fromkeys(("nm_mask", "nm_apply", "quantile_codes", "masked_copy"), 0.85),
    **dict.fromkeys(("gather_rows", "gather_columns", "compact_layer"), 0.80),
}
GPU_EAGER, GPU_COMPILE = 3, 1


def verdicts(rows: Sequence[OpRow]) -> list[str]:
    """Return a line with ``met`` or ``MISSED`` for every target that the rows of one run can decide."""
    lines = []
    for title in dict.fromkeys(row.case for row in rows if row.dtype == "bf16" and row.shape in HEADLINE):
        measured = {(row.threads, row.provider, row.quantity): row for row in rows if row.case == title}
        for target in _targets(next(iter(measured.values()))):
            lines += _judge(title, target, measured)
    return lines


def _targets(row: OpRow) -> list[Target]:
    if row.on == "cpu":
        return [t for t in CPU if (t.op, t.variant) == (row.op, row.variant)]
    named = [t for t in GPU if (t.op, t.variant) == (row.op, row.variant)]
    shares = [Target(row.op, row.variant, "share", GPU_SHARES[row.op])] if row.op in GPU_SHARES else []
    general = [Target(row.op, row.variant, "reference", GPU_EAGER), Target(row.op, row.variant, "compile", GPU_COMPILE)]
    return [*(named or shares), *general]


def _judge(title: str, target: Target, measured: dict[tuple[int, str, str], OpRow]) -> list[str]:
    threads = min(thread for thread, *_ in measured)
    ours = next((name for name in OURS if (threads, name, "time") in measured), None)
    if ours is None:
        return []
    time = measured[threads, ours, "time"].median
    if target.base == "share":
        share = measured.get((threads, ours, "share"))
        return [_line(title, share.median, target, f"of the {share.unit} rate", ours, "%")] if share else []
    if target.base == "one thread":
        two = measured.get((2, ours, "time"))
        return (
            [_line(title, time / two.median, target, "x as fast with 2 threads", ours)] if two and threads == 1 else []
        )
    base = measured.get((threads, target.base, "time"))
    return [_line(title, base.median / time, target, f"x as fast as {target.base}", ours)] if base else []


def _line(title: str, value: float, target: Target, what: str, ours: str, unit: str = "") -> str:
    word = "met" if value >= target.least else "MISSED"
    # A miss must not look like the target: 1.67 of 1.70, not 1.7 of 1.7.
    for digits in (0, 1, 2, 3) if unit else (1, 2, 3):
        shown, least = (f"{v:.{digits}{unit or 'f'}}" for v in (value, target.least))
        if word == "met" or shown != least:
            break
    return f"{word}: {title}: {ours} is {shown} {what}, target {least}"
