"""The command line, one file per verb."""

from __future__ import annotations

import os
import sys

try:
    from pruneengine.cli import bench, compare, evaluate, export, inspect, prune, recover, search
    from pruneengine.cli.app import app
    from pruneengine.cli.endings import ends_well
except ImportError as missing:
    sys.exit(f"error: the command line needs {missing.name}: pip install 'pruneengine[cli]'")

# In the order in which --help lists them.
for verb in (
    inspect.inspect, prune.prune, search.search, recover.recover, evaluate.evaluate, compare.compare, export.export,
    bench.bench,
):  # fmt: skip
    app.command("eval" if verb is evaluate.evaluate else None)(ends_well(verb))


def main() -> None:
    """Run the command line; :mod:`pruneengine.cli.endings` says how it ends."""
    from pruneengine.common.progress import set_progress

    set_progress(True)
    if not sys.stderr.isatty():
        # The loaders' own bars redraw one line, which fills a log; ours writes a line every few seconds there.
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()
