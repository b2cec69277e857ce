"""What each kind of allocation asks for, before the target and the bounds are met to the last digit."""

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
        shares: by matrix; their mean over weights is nearly the target.
        words: how they were decided.
        bound: the farthest that a matrix may be from the target; None for any distance.
        dense: matrices that stay dense, whatever the bound.
        values: what each decoder layer was judged by.
        warnings: what the user should know.
    """

    shares: dict[str, float]
    words: str
    bound: float | None = None
    dense: frozenset[str] = frozenset()
    values: dict[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def wish_uniform(matrices: Sequence[Matrix], config: SparseConfig) -> Request:
    """The target everywhere."""
    return Request(dict.fromkeys((matrix.name for matrix in matrices), config.sparsity), "uniform")


def wish_global(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics | None
) -> Request:
    """One threshold over all scores: ``|W|`` for magnitude, Wanda's for the others."""
    plain = config.method == "magnitude"
    shares = global_shares(model, matrices, config.sparsity, None if plain else statistics)
    return Request(shares, f"global, by {'|W|' if plain else 'Wanda scores'}{_within(config)}", config.spread)


def wish_by_shape(matrices: Sequence[Matrix], config: SparseConfig, plus: bool) -> Request:
    """Erdos-Renyi, and ER-plus (Liu et al. 2022), for which "the last layer" is dense.

    Of a language model that is read as all matrices of the last decoder layer, since the head is never pruned.
    """
    last = max(matrix.layer for matrix in matrices)
    dense = frozenset(matrix.name for matrix in matrices if plus and matrix.layer == last)
    shares = erdos_renyi(matrices, config.sparsity, dense)
    if config.spread is None:
        dense = frozenset(name for name, share in shares.items() if share == 0)
    words = f"er-plus, layer {last} dense" if plus else "er"
    return Request(shares, words + _within(config), config.spread, dense)


def wish_by_outliers(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics
) -> Request:
    """OWL (Yin et al. 2024): layers with more scores above M means of the layer are kept denser.

    ``keep_l = (1 - s) + 2 lambda (m_l - mean m)``, where m is the percentage of outliers between its least and
    greatest.
    """
    blocks = collect_scores(model, matrices, statistics, (config.outlier,)).of_layers()
    values = 100 * blocks.above[:, 0].double() / blocks.column("count")
    spread = SPREAD if config.spread is None else config.spread
    words = f"owl, outliers above {config.outlier:g} means, spread {spread:g}"
    if not tells_apart(values.numpy()):
        return _even(matrices, config, words, blocks, values.tolist())
    return _by_values(matrices, config, words, blocks, values.tolist(), spread, -1)


def wish_by_function(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics, function: Function
) -> Request:
    """An allocation function of the layers' scores (:mod:`pruneengine.sparse.functions.function`)."""
    blocks = collect_scores(model, matrices, statistics).of_layers()
    distribution = ScoreDistribution(blocks.moments, blocks.histogram)
    values = distribution.values(function).tolist()
    spread = function.spread if config.spread is None else config.spread
    words = f"{'dsa' if config.allocation == 'dsa' else 'function'}, {function}, spread {spread:g}"
    if not distribution.is_valid(function):
        return _even(matrices, config, words, blocks, values)
    return _by_values(matrices, config, words, blocks, values, spread, function.sign)


def wish_as_given(matrices: Sequence[Matrix], config: SparseConfig, given: WrittenSparsities) -> Request:
    """Sparsities or a plan that somebody wrote down; who writes zero wants every weight of that matrix kept."""
    shares = read_sparsities(given, matrices, config.sparsity)
    dense = frozenset(name for name, share in shares.items() if share == 0)
    return Request(shares, given.words + _within(config), config.spread, dense)


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
        return Request(wish_uniform(matrices, config).shares, words, values=_of_layers(blocks, values))
    found = allocation_of(values, config.sparsity, spread, sign, weights=blocks.sizes)
    by_layer = _of_layers(blocks, found.tolist())
    shares = {matrix.name: by_layer[matrix.layer] for matrix in matrices}
    return Request(shares, words, values=_of_layers(blocks, values))


def _even(
    matrices: Sequence[Matrix], config: SparseConfig, words: str, blocks: ScoreMoments, values: list[float]
) -> Request:
    warning = f"allocation {words}: its values do not tell the layers apart, so each gets {config.sparsity:g}"
    shares = wish_uniform(matrices, config).shares
    return Request(shares, words, values=_of_layers(blocks, values), warnings=(warning,))


def _of_layers(blocks: ScoreMoments, values: list[float]) -> dict[int, float]:
    return dict(zip(blocks.layers, values, strict=True))


def _within(config: SparseConfig) -> str:
    return "" if config.spread is None else f", within {config.spread:g} of the mean"
