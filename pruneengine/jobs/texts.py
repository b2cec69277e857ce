"""Calibration and evaluation text of a job, with a warning where they overlap."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruneengine.data.windows import Samples, check_overlap, evaluation_windows, load_samples
from pruneengine.jobs.options import CheckpointOptions, JobOptions
from pruneengine.sparse.config import SparseConfig
from pruneengine.structured.config import PruneConfig


def load_evaluation(options: CheckpointOptions, tokenizer: Any) -> Samples | None:
    """Return the windows of the evaluation text; None without one.

    Raises:
        ValueError: as :func:`pruneengine.data.windows.evaluation_windows`.
    """
    if not options.eval_text:
        return None
    return evaluation_windows(options.eval_text, tokenizer, options.eval_seqlen, options.eval_windows)


def load_texts(
    config: PruneConfig | SparseConfig, options: JobOptions, model: nn.Module, tokenizer: Any, *, calibrates: bool
) -> tuple[Samples | None, Samples | None, tuple[str, ...]]:
    """Return calibration samples and evaluation windows (None where none are needed), and warnings.

    Args:
        config: names the calibration text.
        options: names the evaluation text; without ``out`` nothing is measured.
        model: sampled from where the calibration text is ``self``.
        tokenizer: of the model.
        calibrates: the job reads a calibration text.

    Raises:
        ValueError: as :func:`load_samples` and :func:`evaluation_windows`.
    """
    calibration = None
    warnings = []
    if calibrates:
        calibration = load_samples(
            config.calibration, tokenizer, config.nsamples, config.seqlen, config.seed,
            pack=config.pack, model=model,
        )  # fmt: skip
    evaluation = None if options.out is None else load_evaluation(options, tokenizer)
    if calibration is not None and evaluation is not None:
        shared = check_overlap(calibration, evaluation)
        if shared["duplicate_windows"]:
            warnings.append(f"{shared['duplicate_windows']} of {len(calibration)} calibration samples are duplicates")
        if shared["overlapping_windows"]:
            warnings.append(
                f"{shared['overlapping_windows']} of {len(evaluation)} evaluation windows share {shared['ngram']} "
                "tokens or more with the calibration text: the perplexity is optimistic"
            )
    return calibration, evaluation, tuple(warnings)
