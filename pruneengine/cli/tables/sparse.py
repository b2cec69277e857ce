"""Tables of a sparse prune."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pruneengine.jobs.prune_sparse import SparseResult
from pruneengine.report.pages.sparse import short_name
from pruneengine.report.values.sparse import layer_rows
from pruneengine.report.words import size
from pruneengine.sparse.plan import SparsePlan

# Largest difference of sparsities that are shown as one: counts are whole, so equal sparsities differ by a weight.
SAME = 5e-5


def show_sparsities(console: Console, plan: SparsePlan) -> None:
    """Print the share of every layer that is zero, and of its linears where they differ."""
    rows = layer_rows(plan)
    alike = all(abs(share - row["sparsity"]) <= SAME for row in rows for share in row["linears"].values())
    names = [] if alike else list(dict.fromkeys(name for row in rows for name in row["linears"]))
    table = Table(title="zeros, %", title_justify="left")
    for column in ("layer", "all its linears" if alike else "all", *(short_name(name) for name in names)):
        table.add_column(column, justify="right")
    for row in rows:
        shares = [row["linears"].get(name) for name in names]
        cells = ("dense" if share is None else f"{100 * share:.1f}" for share in shares)
        table.add_row(str(row["layer"]), f"{100 * row['sparsity']:.2f}", *cells)
    console.print(table)


def show_sparse_target(console: Console, plan: SparsePlan) -> None:
    """Print what was asked for, and what the plan reaches."""
    console.print(
        f"asked for {plan.asked:.2%} zeros in {len(plan.removed)} linears; the plan has "
        f"{sum(plan.removed.values()):,}, {plan.reached:.4%} (pattern {plan.pattern}, allocation {plan.allocation})"
    )


def show_sparse_result(console: Console, result: SparseResult, title: str) -> None:
    """Print dense beside pruned, and the counted zeros."""
    dense, pruned, zeros = result.dense, result.pruned, result.zeros
    table = Table(title=title, title_justify="left")
    for column in ("", "dense", "pruned"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("parameters", f"{dense.params:,}", f"{pruned.params:,}")
    table.add_row(f"of them zero, in {len(zeros.zeros)} linears", "", f"{zeros.total:,}")
    table.add_row("weights on disk", size(dense.weight_bytes), size(pruned.weight_bytes))
    if dense.perplexity:
        after = f"{pruned.perplexity.perplexity:.2f}" if pruned.perplexity else "not finite"
        table.add_row("perplexity", f"{dense.perplexity.perplexity:.2f}", after)
    console.print(table)
    if dense.perplexity is not None:
        console.print(f"perplexity over {dense.perplexity.tokens:,} tokens, computed in {dense.perplexity.dtype}")
    exact = len(zeros.zeros) - len(zeros.differing)
    console.print(f"zeros counted in the saved files: exactly as planned in {exact} of {len(zeros.zeros)} matrices")
