"""Conditions for timing sparse pruning: all providers prune as many weights, and the same ones up to ties."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.sparse.providers import COMPRESSOR, LOOP, OURS, TWO_PASS, Outcome, Panel, Work, zeros
from pruneengine.bench.record import GateError
from pruneengine.model import get_linear
from tests.helpers.sparse_reference import grouped, row_counts, smallest

# Relative distance of a score to its threshold, where float32 may see a tie otherwise.
TIE = 1e-4
# The part of the choices that must be the same where rounding makes one otherwise that feeds the next: in the first
# layer of SparseGPT, which makes up for one column in the others, and everywhere behind a layer that differs.
AGREEMENT, AGREEMENT_BEHIND = 0.998, 0.75


def gate(work: Work, dense: nn.Module, panel: Panel) -> dict[str, int]:
    """Let everyone prune once, and compare.

    Returns:
        How many weights each chose otherwise than the published loop, for those that prune in its order.

    Raises:
        GateError: a count of pruneengine's is not exact, its two-pass mode does not choose as the published loop does,
            or there is no such loop. Another peer that chooses otherwise has failed.
    """
    outcomes = {name: panel.prune(name, work, masks=True) for name in panel.taking_part(work)}
    if LOOP in panel.failed:
        raise GateError(f"the {LOOP} failed, and there is nothing to compare with: {panel.failed[LOOP]}")
    # A dense weight may be zero and stay.
    spare = sum(int(mask.sum()) for mask in zeros(dense).values())
    for name in (OURS, TWO_PASS):
        removed = outcomes[name].removed.values()
        found, asked = sum(int(m.sum()) for m in removed), round(work.sparsity * sum(m.numel() for m in removed))
        if not asked <= found <= asked + spare:
            raise GateError(f"{name} removed {found:,} weights, expected {asked:,}")
    different = {TWO_PASS: check_same(work, dense, TWO_PASS, outcomes[TWO_PASS], outcomes[LOOP])}
    if outcomes.get(COMPRESSOR) is not None:
        try:
            different[COMPRESSOR] = check_same(work, dense, COMPRESSOR, outcomes[COMPRESSOR], outcomes[LOOP])
        except GateError as error:
            panel.failed[COMPRESSOR] = str(error)
    return different


def check_same(work: Work, dense: nn.Module, name: str, outcome: Outcome, loop: Outcome) -> int:
    """How many weights a provider chose otherwise than the published loop.

    Raises:
        GateError: more than rounding explains, or under Wanda one that is no tie in the first layer that differs.
    """
    if outcome.removed.keys() != loop.removed.keys():
        odd = min(outcome.removed.keys() ^ loop.removed.keys())
        raise GateError(f"{name} and {LOOP} do not prune the same linears: {odd}")
    differ = {path: mask != loop.removed[path] for path, mask in outcome.removed.items()}
    differ = {path: mask for path, mask in differ.items() if bool(mask.any())}
    if not differ:
        return 0
    first = min(map(_layer, differ))
    together = [path for path in differ if _layer(path) == first]
    if work.method == "wanda":
        for path in together:
            far = _farthest(work, get_linear(dense, path).weight.detach(), loop.statistics[path].squares, differ[path])
            if far > TIE:
                raise GateError(
                    f"{name} and {LOOP} differ in {path} by a weight whose score is {far:.1e} from the threshold"
                )
    else:
        _agree(name, f"layer {first}", {path: differ[path] for path in together}, AGREEMENT)
    _agree(name, "the linears that differ", differ, AGREEMENT_BEHIND)
    return sum(int(mask.sum()) for mask in differ.values())


def _agree(name: str, where: str, differ: dict[str, Tensor], least: float) -> None:
    agreement = 1 - sum(int(mask.sum()) for mask in differ.values()) / sum(mask.numel() for mask in differ.values())
    if agreement < least:
        raise GateError(f"{name} and {LOOP} agree on {agreement:.2%} of the weights of {where}, expected {least:.1%}")


def _layer(path: str) -> int:
    return int(path.split(".layers.")[1].split(".")[0])


def _farthest(work: Work, weight: Tensor, squares: Tensor, differ: Tensor) -> float:
    """The largest distance to the threshold among weights that were chosen otherwise."""
    rows = differ.any(1).nonzero().flatten()
    scores = weight[rows].double().abs() * squares.double().sqrt()
    if work.group is None:
        count = round(work.sparsity * weight.numel())
        _, margin = smallest(scores, [row_counts(count, len(weight))[row] for row in rows.tolist()])
    else:
        _, margin = grouped(scores, work.group)
    return float(margin[differ[rows]].max())
