"""Requests of the allocations: the sparsities that each asks for, before target and bounds are met exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.sparse.allocations.block_scores import ScoreMoments, collect_scores
from pruneengine.sparse.allocations.erdos_renyi import erdos_renyi
from pruneengine.sparse.allocations.global_share import global_shares
from pruneengine.sparse.allocations.parse import WrittenSparsities
from pruneengine.sparse.allocations.written import read_sparsities
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.functions.allocation import allocation_of
from pruneengine.sparse.functions.distribution import ScoreDistribution, tells_apart
from pruneengine.sparse.functions.function import SPREAD, Function
from pruneengine.sparse.matrices import Matrix


@dataclass(frozen=True)
class Request:
    """The sparsities asked for.

    Attributes:
        shares: sparsity by matrix; the mean over weights is nearly the target.
        words: description for reports.
        bound: greatest distance of a matrix from the target; None for any distance.
        dense: matrices that stay dense, whatever the bound.
        values: number by which each decoder layer was judged.
        warnings: for the user.
    """

    shares: dict[str, float]
    words: str
    bound: float | None = None
    dense: frozenset[str] = frozenset()
    values: dict[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def target_of(config: SparseConfig) -> float:
    """Return the config's sparsity, which is never None once the config is made."""
    assert config.sparsity is not None  # an N:M pattern fills it in
    return config.sparsity


def request_uniform(matrices: Sequence[Matrix], config: SparseConfig) -> Request:
    """Request the target for every matrix."""
    return Request(dict.fromkeys([matrix.name for matrix in matrices], target_of(config)), "uniform")


def request_global(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics | None
) -> Request:
    """Request one threshold over all scores: ``|W|`` for magnitude, Wanda's scores for the other methods."""
    plain = config.method == "magnitude"
    shares = global_shares(model, matrices, target_of(config), None if plain else statistics)
    return Request(shares, f"global, by {'|W|' if plain else 'Wanda scores'}{_within(config)}", config.spread)


def request_by_shape(matrices: Sequence[Matrix], config: SparseConfig, plus: bool) -> Request:
    """Request Erdos-Renyi densities; with ``plus`` ER-plus (Liu et al. 2022), where "the last layer" is dense.

    In a language model we take that to be all matrices of the last decoder layer, since the head is never pruned.
    """
    last = max(matrix.layer for matrix in matrices)
    dense = frozenset(matrix.name for matrix in matrices if plus and matrix.layer == last)
    shares = erdos_renyi(matrices, target_of(config), dense)
    if config.spread is None:
        dense = frozenset(name for name, share in shares.items() if share == 0)
    words = f"er-plus, layer {last} dense" if plus else "er"
    return Request(shares, words + _within(config), config.spread, dense)


def request_by_outliers(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics
) -> Request:
    """Request OWL (Yin et al. 2024): layers with more scores above M times the layer's mean stay denser.

    ``keep_l = (1 - s) + 2 lambda (m_l - mean m)``. Here m is the position of the layer's percentage of outliers between
    the least and the greatest.
    """
    blocks = collect_scores(model, matrices, statistics, (config.outlier,)).of_layers()
    values = 100 * blocks.above[:, 0].double() / blocks.column("count")
    spread = SPREAD if config.spread is None else config.spread
    words = f"owl, outliers above {config.outlier:g} means, spread {spread:g}"
    if not tells_apart(values.numpy()):
        return _even(matrices, config, words, blocks, values.tolist())
    return _by_values(matrices, config, words, blocks, values.tolist(), spread, -1)


def request_by_function(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics, function: Function
) -> Request:
    """Request what a function of the layers' scores says (:mod:`pruneengine.sparse.functions.function`)."""
    blocks = collect_scores(model, matrices, statistics).of_layers()
    distribution = ScoreDistribution(blocks.moments, blocks.histogram)
    values = distribution.values(function).tolist()
    spread = function.spread if config.spread is None else config.spread
    words = f"{'dsa' if config.allocation == 'dsa' else 'function'}, {function}, spread {spread:g}"
    if not distribution.is_valid(function):
        return _even(matrices, config, words, blocks, values)
    return _by_values(matrices, config, words, blocks, values, spread, function.sign)


def request_written(matrices: Sequence[Matrix], config: SparseConfig, written: WrittenSparsities) -> Request:
    """Request sparsities or a plan that somebody wrote down; a matrix with sparsity zero stays dense."""
    shares = read_sparsities(written, matrices, target_of(config))
    dense = frozenset(name for name, share in shares.items() if share == 0)
    return Request(shares, written.words + _within(config), config.spread, dense)


def _by_values(
    matrices: Sequence[Matrix],
    config: SparseConfig,
    words: str,
    blocks: ScoreMoments,
    values: list[float],
    spread: float,
    sign: int,
) -> Request:
    if not spread:
        return Request(request_uniform(matrices, config).shares, words, values=_of_layers(blocks, values))
    sparsities = allocation_of(values, target_of(config), spread, sign, weights=blocks.sizes)
    by_layer = _of_layers(blocks, sparsities.tolist())
    shares = {matrix.name: by_layer[matrix.layer] for matrix in matrices}
    return Request(shares, words, values=_of_layers(blocks, values))


def _even(
    matrices: Sequence[Matrix], config: SparseConfig, words: str, blocks: ScoreMoments, values: list[float]
) -> Request:
    warning = f"allocation {words}: its values do not tell the layers apart, so each gets {target_of(config):g}"
    shares = request_uniform(matrices, config).shares
    return Request(shares, words, values=_of_layers(blocks, values), warnings=(warning,))


def _of_layers(blocks: ScoreMoments, values: list[float]) -> dict[int, float]:
    return dict(zip(blocks.layers, values, strict=True))


def _within(config: SparseConfig) -> str:
    return "" if config.spread is None else f", within {config.spread:g} of the mean"
