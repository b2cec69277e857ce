"""Sparse pruning from a dense model to one with zeros, one function per step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneengine.calibration.calibrate import calibrate, check_tokens, check_weights
from pruneengine.calibration.idle_experts import idle_experts, idle_words
from pruneengine.calibration.pruning import PruningReport, find_structure
from pruneengine.calibration.statistics import Statistics
from pruneengine.common.aliases import accept_former_argument
from pruneengine.common.errors import InputError
from pruneengine.common.progress import Stopwatch, track
from pruneengine.data.samples import Tokens, as_samples
from pruneengine.model import Structure, get_linear, model_fingerprint
from pruneengine.model.decoder import inference
from pruneengine.sparse.allocations.allocate import Allocation, allocate_sparsities, needs_statistics
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.layer_pass import prune_layers
from pruneengine.sparse.matrices import Matrix, check_columns, find_matrices, of_layers
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.plan import SparsePlan, make_sparse_plan
from pruneengine.sparse.pruners.input_sums import checked_norm
from pruneengine.sparse.pruners.pruner import IDLE, make_pruner
from pruneengine.sparse.pruners.smallest import zero_smallest
from pruneengine.sparse.resume import PartialPrune, check_partial
from pruneengine.sparse.zeros import count_zeros


@dataclass(frozen=True, eq=False, kw_only=True)
class SparseReport(PruningReport[SparseConfig, SparsePlan]):
    """The plan of a sparse prune and its sources (see :class:`PruningReport`).

    The plan says how many weights of every matrix are removed; under compare "layer" the report of :func:`carry_out`
    has the counts that were removed instead.

    Attributes:
        allocation: the source of the plan's counts; None where the plan was given.
    """

    allocation: Allocation | None = None

    def __str__(self) -> str:
        plan = self.plan
        zeros, total = sum(plan.removed.values()), sum(rows * columns for rows, columns in plan.shapes.values())
        return (
            f"{self.config.method} ({plan.pattern}, {plan.allocation}): {zeros:,} of {total:,} weights in "
            f"{len(plan.shapes)} matrices removed, {plan.reached:.2%} for {plan.asked:.2%} asked ({self.stages})"
        )


@accept_former_argument("batches", "samples")
def sparsify(
    model: nn.Module,
    samples: Tokens | None = None,
    config: SparseConfig | None = None,
    *,
    statistics: Statistics | None = None,
    plan: SparsePlan | None = None,
) -> SparseReport:
    """Set single weights of a model to zero, in place.

    Embeddings and the head stay dense, and so do linears whose share is zero: those keep every bit. Layers are pruned
    one after the other. So an error or Ctrl-C while layers are pruned leaves earlier layers pruned and later ones
    dense: load the model again. (This holds for SparseGPT and Wanda; the checks come before any change.)

    Args:
        model: a transformers causal language model of the Llama family, dense.
        samples: calibration token ids, int64 ``[N, L]``; magnitude needs none unless its allocation does.
        config: method, sparsity and pattern. It may be left out with a plan; then linears that are not in the plan
            stay dense (a plan without a whole decoder layer needs a config whose ``ignore`` says so).
        statistics: of this dense model, with "squares": for allocations that read any, and in place of samples for
            Wanda in mode "one-shot".
        plan: counts made before, by this config's method and pattern; then none are worked out.

    Raises:
        ValueError: before the model is touched, for anything that cannot be done as asked: tokens outside the
            vocabulary, weights that are not finite, rows that are no whole number of groups, a plan of another model.
            While layers are pruned: activations that are not finite, or a Hessian that no damping helps.
    """
    clock = Stopwatch()
    structure = find_structure(model, statistics, clock)
    if config is None:
        config = SparseConfig() if plan is None else _config_of(plan, find_matrices(model, structure))
    report = decide(model, structure, samples, config, statistics=statistics, plan=plan, clock=clock)
    return carry_out(model, structure, samples, report, clock)


def decide(
    model: nn.Module,
    structure: Structure,
    samples: Tokens | None,
    config: SparseConfig,
    *,
    statistics: Statistics | None = None,
    plan: SparsePlan | None = None,
    clock: Stopwatch | None = None,
) -> SparseReport:
    """Return the plan and its sources; the model is not changed, and ``statistics`` are taken to be this model's."""
    clock = clock or Stopwatch()
    with clock("check"):
        matrices = _checked(model, structure, samples, config, statistics, plan)
    if statistics is None and _reads_statistics(config, plan):
        assert samples is not None  # _checked refuses to go without both
        with clock("calibrate"):
            statistics = calibrate(
                model, samples, ("squares",), structure=structure, kinds=(), batch_size=config.batch_size
            )
    allocation = None
    if plan is None:
        assert config.sparsity is not None  # settled by the config's constructor
        with clock("allocate"):
            allocation = allocate_sparsities(model, matrices, config, statistics)
            plan = make_sparse_plan(
                structure.model_type, matrices, allocation.sparsities, config.sparsity,
                method=config.method, pattern=Pattern.parse(config.pattern), allocation=allocation.words,
            )  # fmt: skip
    warnings = config.notes + (allocation.warnings if allocation else ())
    return SparseReport(
        config=config, plan=plan, allocation=allocation, statistics=statistics, seconds=clock.seconds,
        warnings=warnings,
    )  # fmt: skip


def carry_out(
    model: nn.Module,
    structure: Structure,
    samples: Tokens | None,
    report: SparseReport,
    clock: Stopwatch,
    partial: PartialPrune | None = None,
) -> SparseReport:
    """Prune the model in place by the report of :func:`decide`, behind the finished layers of ``partial`` if given."""
    config, plan = report.config, report.plan
    matrices = find_matrices(model, structure, config.ignore)
    chosen = [matrix for matrix in matrices if plan.removed[matrix.name]]
    warnings: tuple[str, ...] = ()
    with clock("prune"), inference(model):
        if not _runs_layers(config):
            statistics = None if config.method == "magnitude" else report.statistics
            _prune_from(model, chosen, config, plan, statistics)
        else:
            assert samples is not None  # decide() refuses to run layers without them
            pruner = make_pruner(model, plan, config)
            pieces = [*as_samples(samples).batches(config.batch_size)]
            warnings = prune_layers(model, structure, chosen, pruner, pieces, config.mode, config.method, partial)
    if report.statistics is not None and _reads_dense_norms(config):
        warnings = idle_words(idle_experts(structure, report.statistics), IDLE)
    if config.compared == "layer":
        plan = replace(plan, removed=count_zeros(model, plan).zeros)
    return replace(report, plan=plan, warnings=report.warnings + warnings)


def keep_layers(model: nn.Module, samples: Tokens | None, report: SparseReport, folder: Path) -> PartialPrune | None:
    """Return the store of finished layers for :func:`carry_out`, so that another call goes on behind them.

    None for methods that are too fast to need it, because they run no layers.

    Args:
        model: the dense model.
        samples: as for :func:`carry_out`.
        report: as returned by :func:`decide`.
        folder: the store's folder, which the caller removes in the end.

    Raises:
        ValueError, PermissionError: as :class:`PartialPrune`.
    """
    if not _runs_layers(report.config):
        return None
    counts = hashlib.sha256(json.dumps(report.plan.removed).encode()).hexdigest()[:16]
    return PartialPrune(folder, _known(report.config, model, samples) | {"counts": counts})


def check_layers(
    config: SparseConfig,
    folder: Path,
    model: nn.Module | None = None,
    samples: Tokens | None = None,
) -> None:
    """Raise ValueError if :func:`keep_layers` would refuse the folder for reasons known before :func:`decide`.

    Args:
        config: the config of the prune.
        folder: the folder of finished layers; need not exist.
        model: the dense model; None where it is not loaded yet.
        samples: calibration token ids; None where they are not loaded yet.

    Raises:
        ValueError: as :class:`PartialPrune`.
    """
    # Without a folder there is no need to read all weights for a fingerprint.
    if _runs_layers(config) and folder.exists():
        check_partial(folder, _known(config, model, samples))


def check_statistics(config: SparseConfig, statistics: Statistics, plan: SparsePlan | None = None) -> None:
    """Raise ValueError, with the quantities collected, if statistics lack a quantity that this prune reads."""
    if _reads_statistics(config, plan) and "squares" not in statistics.tensors:
        collected = ", ".join(sorted(statistics.tensors)) or "none"
        raise InputError(f"the statistics must hold 'squares'; collected: {collected}")


def _config_of(plan: SparsePlan, matrices: Sequence[Matrix]) -> SparseConfig:
    """Return the config by which a plan was made; matrices that are not in the plan are ignored."""
    # A layer of which the plan has nothing is a sign of another model.
    known = {matrix.layer for matrix in matrices if matrix.name in plan.shapes}
    absent = tuple(matrix.name for matrix in matrices if matrix.layer in known and matrix.name not in plan.shapes)
    return SparseConfig(plan.method, plan.asked, plan.pattern, ignore=absent)


def _known(config: SparseConfig, model: nn.Module | None, samples: Tokens | None) -> dict[str, Any]:
    """Return all settings but the plan's counts that decide the weights of a prune that runs layers."""
    names = ("method", "pattern", "sparsity", "compared", "mode", "damp", "block", "batch_size")
    known = {name: getattr(config, name) for name in names}
    if model is not None:
        known["model"] = model_fingerprint(model)
    if samples is not None:
        known["calibration text"] = as_samples(samples).hash[:16]
    return known


def _runs_layers(config: SparseConfig) -> bool:
    return config.method != "magnitude" and not _reads_dense_norms(config)


def _reads_dense_norms(config: SparseConfig) -> bool:
    return config.method == "wanda" and config.mode == "one-shot"


def _reads_statistics(config: SparseConfig, plan: SparsePlan | None) -> bool:
    return _reads_dense_norms(config) or (plan is None and needs_statistics(config))


def _prune_from(
    model: nn.Module,
    matrices: Sequence[Matrix],
    config: SparseConfig,
    plan: SparsePlan,
    statistics: Statistics | None,
) -> None:
    """Zero weights by scores that need no run of the model: of weights alone, or with norms of its dense inputs."""
    for members in track([*of_layers(matrices).values()], config.method):
        norms = None
        if statistics is not None:
            device = get_linear(model, members[0].name).weight.device
            norms = {m.site: checked_norm(statistics.input_norm(m.site), m.name).to(device) for m in members}
        zero_smallest(model, plan, members, config.compared, norms)


def _checked(
    model: nn.Module,
    structure: Structure,
    samples: Tokens | None,
    config: SparseConfig,
    statistics: Statistics | None,
    plan: SparsePlan | None,
) -> tuple[Matrix, ...]:
    """Return the matrices to prune; ValueError if anything cannot be done as asked."""
    pattern = Pattern.parse(config.pattern)
    matrices = find_matrices(model, structure, config.ignore)
    if pattern.m is not None:
        check_columns(matrices, pattern.m)
    if plan is not None:
        plan.check(matrices)
        for name, asked, planned in (("method", config.method, plan.method), ("pattern", config.pattern, plan.pattern)):
            if asked != planned:
                raise InputError(f"the plan has {name} {planned!r}, the config {asked!r}")
    reads = _reads_statistics(config, plan)
    if samples is None:
        if _runs_layers(config):
            raise InputError(f"method {config.method!r} in mode {config.mode!r} needs calibration batches, got none")
        if reads and statistics is None:
            raise InputError(
                f"method {config.method!r} in mode {config.mode!r} with allocation {config.allocation!r} needs "
                "calibration batches or statistics, got neither"
            )
    if statistics is not None:
        check_statistics(config, statistics, plan)
    if samples is not None:
        check_tokens(model, structure, as_samples(samples))
    check_weights(model)
    return matrices
