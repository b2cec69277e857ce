"""Ops that read weights: sums and moments of their scores, without a temporary of the weight's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruneengine.ops.checks import (
    require_beside,
    require_dims,
    require_dtype,
    require_exponent,
    require_float,
    require_like,
    require_matrix,
    require_norm,
    require_rows,
    require_shape,
    require_unit,
)
from pruneengine.ops.reference import HISTOGRAM_BINS, MOMENTS
from pruneengine.ops.registry import floats, register

FORMS = ("signed", "absolute", "squared")


def _check_weight_scores(
    weight: Tensor, norms: Tensor | None, powers: Sequence[float], norm_powers: Sequence[float]
) -> None:
    require_float("weight", weight, "[R, C]")
    require_rows("weight", weight)
    if not len(powers) == len(norm_powers) > 0:
        raise ValueError(
            f"{len(powers)} powers, {len(norm_powers)} norm_powers; expected as many of each, at least one"
        )
    for name, values in (("power", powers), ("norm_power", norm_powers)):
        for value in values:
            require_exponent(name, value)
    if norms is None:
        return
    require_dtype("norm", norms, torch.float32)
    require_shape("norm", norms, (len(powers), weight.shape[1]), "one factor per score and column")
    require_beside("norm", norms, "weight", weight)


def _check_taylor_scores(weight: Tensor, gradient: Tensor, absolute_only: bool) -> None:
    require_float("weight", weight, "[R, C]")
    require_like("gradient", gradient, "weight", weight, torch.float32)
    require_rows("weight", weight)
    require_rows("gradient", gradient)


def _check_taylor_scores_outer(weight: Tensor, delta: Tensor, x: Tensor, per_sample: bool) -> None:
    require_matrix("weight", weight)
    require_float("delta", delta, "[N, T, R]")
    require_float("x", x, "[N, T, C]")
    require_shape("delta", delta, (*x.shape[:2], weight.shape[0]), "the tokens of x, the rows of weight")
    require_shape("x", x, (*x.shape[:2], weight.shape[1]), "its tokens, the columns of weight")
    for name, tensor in (("delta", delta), ("x", x)):
        require_beside(name, tensor, "weight", weight)
    if delta.dtype != x.dtype:
        raise TypeError(f"delta has dtype {delta.dtype}; expected {x.dtype}, as x")


def _check_block_moments(
    weight: Tensor, norm: Tensor | None, power: float, norm_power: float, thresholds: Tensor
) -> None:
    require_matrix("weight", weight)
    require_norm(norm, "weight", weight)
    require_exponent("power", power)
    require_exponent("norm_power", norm_power)
    require_dtype("thresholds", thresholds, torch.float32)
    if thresholds.dim() != 1 or thresholds.shape[0] > 16:
        raise ValueError(f"thresholds has shape {list(thresholds.shape)}; expected [K] with K <= 16")
    require_beside("thresholds", thresholds, "weight", weight)


def _fake_outer(weight: Tensor, delta: Tensor, x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    samples, (rows, columns) = x.shape[0] if per_sample else 1, weight.shape
    return floats(weight, samples, len(FORMS), rows), floats(weight, samples, len(FORMS), columns)


_weight_scores = register(
    "weight_scores",
    "(Tensor weight, Tensor? norms, float[] powers, float[] norm_powers) -> (Tensor, Tensor)",
    _check_weight_scores,
    lambda weight, norms, powers, _: tuple(floats(weight, len(powers), size) for size in weight.shape),
)
_taylor_scores = register(
    "taylor_scores",
    "(Tensor weight, Tensor gradient, bool absolute_only) -> (Tensor, Tensor)",
    _check_taylor_scores,
    lambda weight, _, only: tuple(floats(weight, 1 if only else len(FORMS), size) for size in weight.shape),
)
_taylor_scores_outer = register(
    "taylor_scores_outer",
    "(Tensor weight, Tensor delta, Tensor x, bool per_sample) -> (Tensor, Tensor)",
    _check_taylor_scores_outer,
    _fake_outer,
)
_block_moments = register(
    "block_moments",
    "(Tensor weight, Tensor? norm, float power, float norm_power, Tensor thresholds) -> (Tensor, Tensor, Tensor)",
    _check_block_moments,
    lambda weight, _norm, _power, _norm_power, thresholds: (
        weight.new_empty(len(MOMENTS), dtype=torch.float64),
        weight.new_empty(thresholds.shape, dtype=torch.int64),
        weight.new_empty(HISTOGRAM_BINS, dtype=torch.int64),
    ),
)


def _check_units(weight: Tensor, row_unit: int, column_unit: int) -> None:
    require_dims("weight", weight, "[R, C]")
    require_unit("row_unit", row_unit, weight.shape[0])
    require_unit("column_unit", column_unit, weight.shape[1])


def _units(sums: Tensor, unit: int) -> Tensor:
    """Return sums over consecutive rows or columns: ``[..., size]`` to ``[..., size / unit]``."""
    return sums if unit == 1 else sums.unflatten(-1, (-1, unit)).sum(-1)


def weight_scores(
    weight: Tensor,
    norm: Tensor | None = None,
    power: float | Sequence[float] = 1.0,
    norm_power: float | Sequence[float] = 1.0,
    row_unit: int = 1,
    column_unit: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return row and column sums of ``|W|^power * norm^norm_power``: with input norms, sums of Wanda's score.

    Several exponents, or several norms, give several scores from one read of ``W``.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous (``stride(1) == 1``).
        norm: one non-negative float32 factor per column ``[C]`` (an activation norm), or ``[K, C]``, or None for 1.
        power: exponent of the magnitude, > 0, or K of them.
        norm_power: exponent of the norm, > 0, or K of them.
        row_unit: sum this many consecutive rows into one (a head's width); divides ``R``.
        column_unit: the same of columns; divides ``C``.

    Returns:
        ``(rows, columns)``: float32 ``[R / row_unit]`` and ``[C / column_unit]``, each with a leading ``K`` where any
        argument has it.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, an exponent that is not > 0, counts K that
            differ, or a unit that does not divide.
    """
    _check_units(weight, row_unit, column_unit)
    counts = [len(value) for value in (power, norm_power) if isinstance(value, Sequence)]
    counts += [norm.shape[0]] if norm is not None and norm.dim() == 2 else []
    if len(set(counts)) > 1 or 0 in counts:
        raise ValueError(f"power, norm_power and norm have {counts} scores; expected the same number, at least 1")
    count = counts[0] if counts else 1
    powers, norm_powers = (
        [float(v) for v in (value if isinstance(value, Sequence) else [value] * count)] for value in (power, norm_power)
    )
    if norm is not None:
        norm = norm.expand(count, *norm.shape) if norm.dim() == 1 else norm
    rows, columns = _weight_scores(weight, norm, powers, norm_powers)
    rows, columns = _units(rows, row_unit), _units(columns, column_unit)
    return (rows, columns) if counts else (rows[0], columns[0])


def taylor_scores(
    weight: Tensor, gradient: Tensor, forms: Sequence[str] = FORMS, row_unit: int = 1, column_unit: int = 1
) -> tuple[Tensor, Tensor]:
    """Return row and column sums of ``W * G``: signed, absolute and squared, in one read of both.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous.
        gradient: ``[R, C]``, float32 or the weight's dtype, rows contiguous.
        forms: some of ``signed`` (``sum(w*g)``), ``absolute`` (``sum(|w*g|)``) and ``squared`` (``sum((w*g)^2)``).
        row_unit: sum this many consecutive rows into one; divides ``R``.
        column_unit: the same of columns; divides ``C``.

    Returns:
        ``(rows, columns)``: float32 ``[F, R / row_unit]`` and ``[F, C / column_unit]``, the forms in the order asked.

    Raises:
        TypeError: another dtype.
        ValueError: different shapes or devices, rows that are not contiguous, an unknown form, or a unit that does not
            divide.
    """
    _check_units(weight, row_unit, column_unit)
    forms = list(forms)
    if unknown := [form for form in forms if form not in FORMS]:
        raise ValueError(f"forms holds {unknown[0]!r}; expected some of {', '.join(FORMS)}")
    absolute_only = forms == ["absolute"]
    sums = _taylor_scores(weight, gradient, absolute_only)
    if not absolute_only and forms != list(FORMS):
        sums = [s[[FORMS.index(form) for form in forms]] for s in sums]
    return _units(sums[0], row_unit), _units(sums[1], column_unit)


def taylor_scores_outer(
    weight: Tensor, delta: Tensor, x: Tensor, per_sample: bool = False, row_unit: int = 1, column_unit: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the :func:`taylor_scores` of a linear layer from its input and output gradient.

    The weight gradient of ``y = x W^T``, ``G = sum over tokens of outer(delta, x)`` with ``delta = dL/dy``, is never
    stored: it is formed tile by tile in float32 and reduced on the spot. The last bits may change: on a CPU, where
    tiles come from torch's matrix product, with the number of threads; on a GPU with strides and alignment, which
    decide the tile.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous.
        delta: ``[N, T, R]``, gradient of the loss at the layer's output; float32, float16 or bfloat16, any strides.
        x: ``[N, T, C]``, the layer's input, of delta's dtype, any strides.
        per_sample: sums of each sample's own gradient (the terms of the diagonal Fisher), not of the gradients' sum.
        row_unit: sum this many consecutive rows into one; divides ``R``.
        column_unit: the same of columns; divides ``C``.

    Returns:
        ``(rows, columns)``: float32 ``[3, R / row_unit]`` and ``[3, C / column_unit]``, signed, absolute, squared;
        with ``per_sample`` a leading ``N``.

    Raises:
        TypeError: another dtype, or two different ones of ``delta`` and ``x``.
        ValueError: shapes that do not fit, different devices, or a unit that does not divide.
    """
    _check_units(weight, row_unit, column_unit)
    rows, columns = _taylor_scores_outer(weight, delta, x, per_sample)
    rows, columns = _units(rows, row_unit), _units(columns, column_unit)
    return (rows, columns) if per_sample else (rows[0], columns[0])


def block_moments(
    weight: Tensor,
    norm: Tensor | None = None,
    power: float = 1.0,
    norm_power: float = 1.0,
    thresholds: Tensor | Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return moments, counts and a histogram of a matrix's scores ``s = |W|^power * norm^norm_power``, in one read.

    They are what allocation functions need. Results of several matrices add up (but for ``min`` and ``max``) to those
    of the block that the matrices form.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous.
        norm: one non-negative float32 factor per column ``[C]``, or None for 1.
        power: exponent of the magnitude, > 0.
        norm_power: exponent of the norm, > 0.
        thresholds: up to 16 bounds, a float32 tensor ``[K]`` or numbers. OWL's (Yin et al. 2024) are multiples of the
            block's mean, known after a first read.

    Returns:
        ``(moments, above, histogram)``:

        - ``moments``: float64 ``[12]``, named by :data:`pruneengine.ops.MOMENTS`: ``count``, ``sum``, ``sum2``,
          ``sum3``, ``sum4`` (sums of powers), ``min``, ``max`` (inf and -inf of no scores), ``positive`` (number of
          scores > 0) and over those ``log`` (sum of ``ln s``), ``log2`` (of its square), ``slog`` (of ``s ln s``) and
          ``s2log`` (of ``s^2 ln s``): the entropy of ``s / sum`` is ``ln(sum) - slog / sum``, that of ``s^2`` is
          ``ln(sum2) - 2 * s2log / sum2``. All sums are good to 1e-6 of the magnitudes
          they add; on a GPU ``sum3`` and ``sum4`` only for scores between 1e-9 and 1e9, whose powers float32 holds.
        - ``above``: int64 ``[K]``, number of scores > each threshold: exactly, as float32, for powers 1 and 2.
        - ``histogram``: int64 ``[2048]``, 32 bins per octave from ``2^-44`` to ``2^20``. Smaller scores (zero
          too) are in the first bin, greater ones in the last (edges: :func:`pruneengine.ops.histogram_edges`).

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, an exponent that is not > 0, or more than 16
            thresholds.
    """
    if not isinstance(thresholds, Tensor):
        thresholds = torch.tensor(list(thresholds), dtype=torch.float32, device=weight.device)
    return _block_moments(weight, norm, float(power), float(norm_power), thresholds)
