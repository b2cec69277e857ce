"""Job of ``pruneengine recover``: a checkpoint in, a better, measured and proved one out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pruneengine.checkpoint.write import SavedCheckpoint
from pruneengine.common.errors import InputError
from pruneengine.common.recipes import read_keys
from pruneengine.evaluation.measures import Measures
from pruneengine.jobs.checkpoint_job import CheckpointJob, proof_values
from pruneengine.jobs.checks import check_evaluation
from pruneengine.jobs.options import RecoverOptions
from pruneengine.jobs.recover_pruned import training_kept
from pruneengine.jobs.texts import load_evaluation
from pruneengine.recovery import RecoverConfig, RecoverReport, check_work_folder, load_rows, recover
from pruneengine.report.values.recovery import overlap_warnings, summarise, training_warnings
from pruneengine.sparse.plan import is_sparse_plan


@dataclass(frozen=True)
class RecoverResult:
    """Result of a recovery: the training's report, measures before and after, and the checkpoint."""

    report: RecoverReport
    before: Measures
    after: Measures
    saved: SavedCheckpoint
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def run(config: RecoverConfig, options: RecoverOptions, say: Callable[[str], None] = lambda _: None) -> RecoverResult:
    """Load, measure, train, merge, measure, save and prove.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
        FloatingPointError: as :func:`pruneengine.recovery.recover`; the work folder stays.
    """
    options = _checked(config, options)
    source = Path(options.source).expanduser()
    pruned, numbers = _carried(source)
    job = CheckpointJob.load(options, say, {"training windows (cutoff)": config.cutoff})
    job.check_room()
    job.check_recovery(config)
    with job.clock("text"):
        rows = load_rows(config, job.tokenizer, job.model)
        job.evaluation = load_evaluation(options, job.tokenizer)
    check_work_folder(options.work, config, rows, options.compute_dtype)
    job.warnings += overlap_warnings(rows, job.evaluation)
    before = job.measure()
    say(f"training on {len(rows)} rows; checkpoints in {options.work}, from which the same command goes on")
    report = recover(
        job.model, job.tokenizer, config, data=rows, work_dir=options.work, dtype=options.compute_dtype,
        trust_remote_code=options.trust_remote_code,
    )  # fmt: skip
    seconds = job.clock.seconds
    for stage, spent in report.seconds.items():
        seconds[stage] = seconds.get(stage, 0.0) + spent
    job.warnings += training_warnings(report)
    after = job.changed()
    recipe = pruned | {"recovery": report.recipe() | options.recipe() | _earlier(pruned)}
    summary = summarise(report, before.perplexity, after.perplexity, job.warnings)
    numbers |= {"recovery": summary | _earlier(numbers)}
    with training_kept(options.work):
        saved = job.store(
            recipe=recipe, report=numbers,
            extra_files={"plan.json": plan.read_text()} if (plan := source / "plan.json").is_file() else None,
        )  # fmt: skip
    result = RecoverResult(report, before, after, saved, job.warnings, seconds)
    # Only now: the checkpoint is safe. What the prune's report said stays, its recipe, times and warnings too.
    own = numbers["recovery"] | _own_values(result, options, recipe["recovery"])
    job.report(saved, "recover", numbers | _curves(result) | {"recovery": own})
    return result


def _checked(config: RecoverConfig, options: RecoverOptions) -> RecoverOptions:
    """Refuse what can be refused before the model is loaded, and settle the size of the evaluation text."""
    options.claim(config.teacher)
    if is_sparse_plan(Path(options.source).expanduser() / "plan.json"):
        raise InputError(
            f"{options.source} was pruned sparsely (its plan.json says so): merging trained LoRA adapters would fill "
            "its zeros. Recover before pruning sparsely, or train with the zeros held elsewhere"
        )
    config.check_sources()
    windows = check_evaluation(options.eval_text, options.eval_seqlen, options.eval_windows)
    return replace(options, eval_windows=windows)


def _carried(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return recipe and report of a pruned checkpoint, which tell how it came about; each is empty without its file.

    Raises:
        ValueError: a file that holds something else than keys and values.
    """
    recipe, report = source / "recipe.yaml", source / "report.json"
    numbers: Any = {}
    if report.is_file():
        try:
            numbers = json.loads(report.read_text())
        except ValueError as error:
            raise InputError(f"{report}: cannot be read as a report ({error})") from None
    if not isinstance(numbers, dict):
        raise InputError(f"{report}: a report holds keys and values, got {type(numbers).__name__}")
    return read_keys(recipe) if recipe.is_file() else {}, numbers


def _earlier(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a recipe or a report holds of earlier recoveries, oldest first, without their curves."""
    if not isinstance(last := values.get("recovery"), dict):
        return {}
    kept = {name: value for name, value in last.items() if name != "previous" and not name.endswith("loss by step")}
    return {"previous": [*last.get("previous", ()), kept]}


def _curves(result: RecoverResult) -> dict[str, Any]:
    """Return the values that only the report of a recovery has: losses by step, and both sides."""
    report = result.report
    sides: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    for side, measures in (("before", result.before), ("after", result.after)):
        if measures.perplexity is not None:
            sides[side]["perplexity"] = measures.perplexity.perplexity
    if report.validation:
        for side, step in (("before", 0), ("after", report.best_step)):
            sides[side]["validation loss, nats"] = report.validation[step]
    return sides | {
        "losses": list(report.losses.items()),
        "validation": list(report.validation.items()),
        "best_step": report.best_step,
    }


def _own_values(result: RecoverResult, options: RecoverOptions, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the values of this recovery that the report of the prune has by the same names."""
    values = {
        "source": recipe["source"],
        "recipe": {name: value for name, value in recipe.items() if name not in ("versions", "previous")},
        "versions": recipe["versions"],
        "seed": result.report.config.seed,
        "hashes": {"rows": result.report.data_hash},
        "seconds": dict(result.seconds),
        "warnings": list(result.warnings),
    }
    if result.before.perplexity is not None:
        values["hashes"]["evaluation text"] = result.before.perplexity.samples
    return values | options.evaluation | proof_values(result.saved)
