"""The command line, one file per verb."""

from __future__ import annotations

import os
import sys

try:
    from pruneengine.cli import bench, compare, evaluate, export, inspect, prune, recover, search
    from pruneengine.cli.app import app, err
except ImportError as missing:
    sys.exit(f"error: the command line needs {missing.name}: pip install 'pruneengine[cli]'")

# In the order in which --help lists them.
app.command()(inspect.inspect)
app.command()(prune.prune)
app.command()(search.search)
app.command()(recover.recover)
app.command("eval")(evaluate.evaluate)
app.command()(compare.compare)
app.command()(export.export)
app.command()(bench.bench)


def main() -> None:
    """Run the command line. What the user can mend is one line on standard error and exit status 2."""
    from pruneengine.common.progress import set_progress

    set_progress(True)
    if not sys.stderr.isatty():
        # The loaders' own bars redraw one line, which fills a log; ours writes a line every few seconds there.
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        err.print(f"error: {' '.join(str(error).split())}", style="bold red")
        sys.exit(2)
