"""Job of ``pruneengine eval``: load a model, measure it, and keep every result as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint.load import load_model, load_skeleton
from pruneengine.checkpoint.write import written_here
from pruneengine.common.errors import InputError
from pruneengine.common.files import check_writable, locked
from pruneengine.data import windows as data
from pruneengine.evaluation import lm_eval_adapter, zero_shot
from pruneengine.evaluation.perplexity import perplexity
from pruneengine.evaluation.results import FILE_NAME, Beside, ModelFacts, Results, TextResult, read_results
from pruneengine.evaluation.speed import measure_speed, measure_speed_pair
from pruneengine.jobs.checks import check_evaluation, check_windows
from pruneengine.jobs.versions import versions
from pruneengine.model.checks import check_positions


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation.

    Attributes:
        source: model folder, GGUF file or hub name.
        text: evaluation text spec, or None for no perplexity.
        seqlen: tokens per window.
        windows: number of windows, from the first on; None for all.
        tasks: names of lm-eval tasks.
        include_path: folder of further task files.
        limit: number of items per task, from the first on; None for all.
        batch_size: sequences per forward pass of the tasks, as of :func:`zero_shot`; the text and the speed have
            their own.
        speed: measure tokens per second.
        dense: another model, whose speed is measured in turn with this one's.
        dtype: of the weights in memory.
        compute_dtype: dtype that a float32 model computes text and tasks in; None for ``dtype``.
        out: the file of the results; None for ``results.json`` in a folder that pruneengine wrote, else none.
    """

    source: str
    text: str | None = None
    seqlen: int = 256
    windows: int | None = None
    tasks: tuple[str, ...] = ()
    include_path: Path | None = None
    limit: int | None = None
    batch_size: int | str = 8
    speed: bool = False
    dense: str | None = None
    out: Path | None = None
    dtype: torch.dtype = torch.float32
    compute_dtype: torch.dtype | None = None
    device: str = "cpu"
    trust_remote_code: bool = False

    @property
    def file(self) -> Path | None:
        """The file of the results; None keeps none."""
        folder = Path(self.source).expanduser()
        return self.out or (folder / FILE_NAME if written_here(folder) else None)

    @property
    def window_lengths(self) -> dict[str, int]:
        """Tokens per window of the evaluation text, by a name for messages; empty without a text."""
        return {} if self.text is None else {"evaluation windows": self.seqlen}


def run(options: EvalOptions, say: Callable[[str], None] = lambda _: None) -> Results:
    """Measure perplexity, then task by task, then speed, and rewrite the file after each of them.

    What the file already holds of the same weights and is not measured again stays in it; the return value is what
    was measured now.

    Raises:
        ValueError, OSError: before the model is loaded wherever that can be known.
    """
    manager, earlier = _checked(options)
    if options.file is None:
        say(f"{options.source} is not pruneengine's to write into: results are only shown; --out FILE keeps them")
    say(f"loading {options.source}")
    model, tokenizer = load_model(options.source, options.dtype, options.device, options.trust_remote_code)
    for warning in check_positions(getattr(model, "config", None), options.window_lengths):
        say(f"warning: {warning}")
    results = Results(ModelFacts.of(model, options.source), versions=versions())
    if earlier is not None and not results.same_model(earlier):
        raise InputError(
            f"{options.file} holds results of {results.difference(earlier)}; choose another --out, or delete it"
        )

    def keep(changed: Results) -> None:
        """Write the changed results, with the earlier ones of the same weights."""
        nonlocal results
        results = changed
        if options.file is not None:
            with locked(options.file):
                # Read anew: another process may have added to it.
                kept = read_results(options.file) if options.file.exists() else None
                (results.after(kept) if kept else results).write(options.file)

    if options.text is not None:
        windows = data.evaluation_windows(options.text, tokenizer, options.seqlen, options.windows)
        measured = perplexity(model, windows, dtype=options.compute_dtype)
        keep(results.with_text(TextResult.of(options.text, options.seqlen, measured)))
    if options.tasks:
        zero_shot.zero_shot(
            model, tokenizer, options.tasks, include_path=options.include_path, limit=options.limit,
            batch_size=options.batch_size, dtype=options.compute_dtype, manager=manager,
            done=lambda task: keep(results.with_task(task)),
        )  # fmt: skip
    if options.speed or options.dense is not None:
        keep(_with_speed(results, model, options, say))
    return results


def _checked(options: EvalOptions) -> tuple[Any, Results | None]:
    """Refuse what can be refused before the model is loaded; return lm-eval's task manager and the earlier results."""
    check_evaluation(options.text, options.seqlen, options.windows)
    if options.text is not None:
        check_windows(options.source, options.window_lengths)
    zero_shot.check_limit(options.limit)
    zero_shot.check_batch_size(options.batch_size)
    earlier = None
    if options.file is not None:
        if options.file.is_dir():
            raise InputError(f"results {options.file} is a folder, expected a file such as {options.file / FILE_NAME}")
        check_writable(options.file.parent)
        earlier = read_results(options.file) if options.file.exists() else None
    if options.dense is not None:
        load_skeleton(options.dense, options.trust_remote_code)
    manager = lm_eval_adapter.find_tasks(options.tasks, options.include_path) if options.tasks else None
    return manager, earlier


def _with_speed(results: Results, model: nn.Module, options: EvalOptions, say: Callable[[str], None]) -> Results:
    """Measure the speed, in turn with that of the dense model where one is named."""
    if options.dense is None:
        return replace(results, speed=measure_speed(model))
    say(f"loading {options.dense}")
    dense, _ = load_model(options.dense, options.dtype, options.device, options.trust_remote_code)
    theirs, ours = measure_speed_pair(dense, model)
    return replace(results, speed=ours, dense=Beside(ModelFacts.of(dense, options.dense), theirs))
