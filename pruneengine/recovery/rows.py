"""Token rows to train on, each with the number of leading tokens that are read but not predicted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pruneengine.common.errors import InputError
from pruneengine.model.loss import IGNORED


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Token rows of different lengths.

    Attributes:
        tokens: int64 ``[L_i]`` each, on the CPU, with ``L_i >= 2``.
        masked: tokens at the start of each row that are not predicted: at least 1, less than ``L_i``.
        report: counts of text that was read, used and left over, per source.
    """

    tokens: tuple[Tensor, ...]
    masked: tuple[int, ...]
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.masked) or not self.tokens:
            raise InputError(f"{len(self.tokens)} rows with {len(self.masked)} masks: expected one each, at least one")
        for index, (row, masked) in enumerate(zip(self.tokens, self.masked, strict=True)):
            if row.ndim != 1 or row.dtype != torch.int64 or not 1 <= masked < len(row):
                raise InputError(
                    f"row {index}: {row.dtype} {tuple(row.shape)} with {masked} masked, expected int64 [L] with "
                    "1 <= masked < L"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.tokens[index], self.masked[index]

    @property
    def predicted(self) -> int:
        """Tokens that the loss counts."""
        return sum(len(row) for row in self.tokens) - sum(self.masked)

    @property
    def hash(self) -> str:
        """Sha256 (hex), equal exactly when tokens and masks are equal."""
        digest = hashlib.sha256()
        for row, masked in zip(self.tokens, self.masked, strict=True):
            digest.update(f"{len(row)},{masked};".encode() + row.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> TokenRows:
        return TokenRows(tuple(self.tokens[i] for i in indices), tuple(self.masked[i] for i in indices), self.report)

    def split(self, count: int, seed: int) -> tuple[TokenRows, TokenRows | None]:
        """Return training rows and ``count`` random other rows for validation (None for 0), both in their old order."""
        if not count:
            return self, None
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return self.subset(sorted(order[count:])), self.subset(sorted(order[:count]))

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of all rows, the longest first, for validation."""
        order = sorted(range(len(self)), key=lambda i: -len(self.tokens[i]))
        for start in range(0, len(order), size):
            yield collate([self[i] for i in order[start : start + size]])


def collate(rows: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``labels``, int64 ``[B, L]``, padded on the right, where causal attention never looks.

    So there is no attention mask, which would rule out the fast causal path. Labels are -100 at masked tokens and
    padding. They are not shifted: each stands at its own token.
    """
    length = max(len(row) for row, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for index, (row, masked) in enumerate(rows):
        ids[index, : len(row)] = row
        labels[index, masked : len(row)] = row[masked:]
    return {"input_ids": ids, "labels": labels}


def training_order(lengths: Sequence[int], steps: int, batch: int, epochs: float | None, seed: int) -> list[int]:
    """Return the row numbers of a whole run, ``batch`` per step: epoch after epoch, each in its own random order.

    Inside a step rows are sorted by length. A step's gradient is a sum over all its tokens, so only padding changes.

    Args:
        lengths: tokens of each row.
        steps: optimizer steps; with ``epochs`` the last may be smaller.
        batch: rows per step.
        epochs: passes over the rows, or None for exactly ``steps`` full steps.
        seed: seed of the orders.
    """
    total = steps * batch if epochs is None else max(1, round(len(lengths) * epochs))
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < total:
        order += torch.randperm(len(lengths), generator=generator).tolist()
    steps_rows = (order[start : min(start + batch, total)] for start in range(0, total, batch))
    return [row for rows in steps_rows for row in sorted(rows, key=lambda i: lengths[i])]
