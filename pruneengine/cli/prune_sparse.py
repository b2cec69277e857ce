"""What the verb prune does and prints where sparse pruning is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruneengine.cli.app import out, run_job, show_smoke_test

if TYPE_CHECKING:
    from pruneengine.jobs.prune import JobOptions
    from pruneengine.sparse.config import SparseConfig


def prune_sparsely(config: SparseConfig, options: JobOptions) -> None:
    """Run the job and show its result; without ``options.out`` the plan alone."""
    from pruneengine.cli.tables import sparse as tables_sparse
    from pruneengine.cli.tables import structured as tables
    from pruneengine.jobs.prune_sparse import calibrates, run
    from pruneengine.sparse.runtimes import speed_notes

    result = run_job(run, config, options)
    tables_sparse.show_sparse_target(out, result.report.plan)
    if result.saved is None:
        tables_sparse.show_sparsities(out, result.report.plan)
        tables.show_times(out, result.seconds)
        return
    tables_sparse.show_sparse_result(out, result, title=f"{config.method} on {options.source}")
    tables.show_times(out, result.seconds)
    for note in speed_notes(result.report.plan):
        out.print(note)
    show_smoke_test(options.eval_text, config.calibration if calibrates(result.report.config) else None)
    tables.show_checkpoint(out, result.saved, options.prompt, result.text)
