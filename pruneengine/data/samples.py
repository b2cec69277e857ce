"""Token windows for calibration and evaluation, options of the calibration text, and the overlap of two texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.common.validation import require_whole


@dataclass(frozen=True, eq=False)
class Samples:
    """Token windows and their sources.

    Attributes:
        tokens: int64 ``[N, L]`` on the CPU.
        source: the source of each window, N names.
        report: numbers of tokens and documents read, used and left over, per source.
    """

    tokens: Tensor
    source: tuple[str, ...]
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens.dtype != torch.int64 or self.tokens.ndim != 2:
            raise InputError(f"tokens: {self.tokens.dtype} {tuple(self.tokens.shape)}, expected int64 [N, L]")
        if len(self.source) != len(self.tokens):
            raise InputError(f"source: {len(self.source)} names for {len(self.tokens)} windows")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def hash(self) -> str:
        """sha256 (hex) of shape and token ids: equal exactly when the windows are."""
        ids = np.ascontiguousarray(self.tokens.cpu().numpy(), dtype="<i8")
        return hashlib.sha256(repr(ids.shape).encode() + ids.tobytes()).hexdigest()

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield consecutive batches ``[b, L]`` with ``b <= size``; only the last may be smaller."""
        if size < 1:
            raise InputError(f"batch size {size}: expected at least 1")
        return iter(self.tokens.split(size))


# Token ids as public functions take them: :func:`as_samples`.
Tokens: TypeAlias = Samples | Tensor | Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """Options of the calibration text, which every kind of pruning shares (:func:`pruneengine.data.load_samples`).

    Attributes:
        calibration: text spec: "builtin", "self", a file, a hub name, or a mix such as ``a:64,b:64``.
        nsamples: number of samples; None for the counts in ``calibration``, or 32 where it has none.
        seqlen: tokens per sample.
        pack: join short documents to samples; False leaves out documents shorter than a sample.
        batch_size: samples per forward pass.
        seed: random seed for sampling.
    """

    calibration: str = "builtin"
    nsamples: int | None = None
    seqlen: int = 128
    pack: bool = True
    batch_size: int = 8
    seed: int = 0

    def check_calibration_text(self) -> None:
        """Raise ValueError or TypeError if an option of the calibration text cannot be met."""
        for name in ("seqlen", "batch_size", "nsamples"):
            if name != "nsamples" or self.nsamples is not None:
                require_whole(name, getattr(self, name), 1, "a positive whole number")
        for name, kind in (("seed", int), ("calibration", str), ("pack", bool)):
            if type(getattr(self, name)) is not kind:
                raise InputTypeError(f"{name} must be {kind.__name__}, got {getattr(self, name)!r}")


def as_samples(tokens: Tokens) -> Samples:
    """Return samples as they are, or token ids as samples: int64 ``[N, L]``, or several such tensors of one length L.

    Raises:
        TypeError: values of any other type.
        ValueError: tensors of another shape or dtype, of several lengths, or without a row.
    """
    if isinstance(tokens, Samples):
        return tokens
    pieces = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    for piece in pieces:
        if not isinstance(piece, Tensor):
            raise InputTypeError(f"tokens: {type(piece).__name__}, expected Samples or int64 tensors [N, L]")
        if piece.ndim != 2 or piece.dtype != torch.int64:
            raise InputError(f"tokens: {piece.dtype} {tuple(piece.shape)}, expected int64 [N, L]")
    lengths = sorted({piece.shape[1] for piece in pieces})
    if len(lengths) != 1 or not sum(len(piece) for piece in pieces):
        raise InputError(f"tokens: {len(pieces)} tensors of lengths {lengths}, expected at least one row of one length")
    joined = torch.cat([piece.cpu() for piece in pieces])
    return Samples(joined, ("tensor",) * len(joined))


def check_overlap(calibration: Samples, evaluation: Samples, ngram: int = 32) -> dict[str, float | int]:
    """Measure the text that calibration and evaluation windows share.

    Args:
        calibration: the windows that statistics are collected on.
        evaluation: the windows that results are reported on.
        ngram: a window overlaps when any run of this many tokens also occurs in calibration (64-bit hashes). Shorter
            windows reduce it to their length; the result holds the number that was used.

    Returns:
        ``ngram``, ``duplicate_windows`` (calibration windows equal to an earlier one), ``overlapping_windows``,
        ``evaluation_windows`` and ``overlap``, their quotient in [0, 1].
    """
    if ngram < 1:
        raise InputError(f"ngram={ngram}: expected at least 1")
    ngram = min(ngram, calibration.tokens.shape[1], evaluation.tokens.shape[1])
    known = np.unique(_ngram_hashes(calibration.tokens, ngram))
    hit = np.isin(_ngram_hashes(evaluation.tokens, ngram), known).any(1)
    return {
        "ngram": ngram,
        "duplicate_windows": len(calibration) - len(torch.unique(calibration.tokens, dim=0)),
        "overlapping_windows": int(hit.sum()),
        "evaluation_windows": len(evaluation),
        "overlap": float(hit.mean()),
    }


def _ngram_hashes(tokens: Tensor, ngram: int) -> np.ndarray:
    """Compute the multilinear 64-bit hash of every run of ``ngram`` tokens: uint64 ``[N, L - ngram + 1]``."""
    factors = np.random.Generator(np.random.PCG64(ngram)).integers(1, 2**63, ngram, dtype=np.uint64) | np.uint64(1)
    ids = tokens.cpu().numpy().astype(np.uint64)
    width = ids.shape[1] - ngram + 1
    hashes = np.zeros((len(ids), width), dtype=np.uint64)
    for offset in range(ngram):
        hashes += ids[:, offset : offset + width] * factors[offset]
    return hashes
