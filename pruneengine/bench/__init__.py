"""Benchmark of the ops: each is checked against its specification, then timed against eager torch and the machine.

``pruneengine bench`` and ``python -m benchmarks.speed.run ops`` both call :func:`pruneengine.bench.runner.run`.
"""
