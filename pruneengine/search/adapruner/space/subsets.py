"""Subsets of the pool that a search may calibrate on: a finite menu, known before any backward pass.

A subset is named by length, source, number of samples and selector. Selectors read the losses of the dense model and
mean hidden states, or a seed:

- ``random-K``: the first ``count`` of a permutation drawn with seed K, so that larger counts contain smaller ones;
- ``low-loss``, ``high-loss``: the lowest or highest mean token losses;
- ``middle-loss``: the window of ``count`` samples around the median, in order of loss;
- ``diverse``: greedy farthest points. The sample nearest to the mean direction comes first, then always the sample
  whose largest cosine similarity to the chosen ones is smallest (ours; no publication is followed).

Ties go to the earlier sample. A count that takes the whole source needs no selector: its selector is ``whole``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pruneengine.common.errors import InputError

ALL = "all"
WHOLE = "whole"
RANDOM = "random-"
_IN_WORDS = {
    "low-loss": "those of lowest loss",
    "high-loss": "those of highest loss",
    "middle-loss": "those around the median loss",
    "diverse": "chosen to differ most",
}

# Samples of each source, "all" included, by length.
Sizes = Mapping[int, Mapping[str, int]]


@dataclass(frozen=True)
class Subset:
    """``count`` samples of ``length`` tokens from ``source`` ("all" or one source's name), taken by ``selector``."""

    length: int
    source: str
    count: int
    selector: str

    def __post_init__(self) -> None:
        for what, value, least in (("length", self.length, 2), ("count", self.count, 1)):
            if type(value) is not int or value < least:
                raise InputError(f"subset {what} {value!r}: expected a whole number of at least {least}")
        seed = self.selector.removeprefix(RANDOM)
        seeded = self.selector.startswith(RANDOM) and seed.isascii() and seed.isdigit()
        if not seeded and self.selector not in (*_IN_WORDS, WHOLE):
            raise InputError(
                f"unknown selector {self.selector!r}; choose from {RANDOM}0, {RANDOM}1, ..., {', '.join(_IN_WORDS)}"
            )

    def __str__(self) -> str:
        return f"{self.length}/{self.source}/{self.count}/{self.selector}"

    def in_words(self) -> str:
        """Return words for a report, e.g. "32 samples of 128 tokens from all sources, those of lowest loss"."""
        source = "all sources" if self.source == ALL else self.source
        if self.selector == WHOLE:
            return f"all {self.count} samples of {self.length} tokens from {source}"
        how = _IN_WORDS.get(self.selector) or f"drawn at random (seed {self.selector.removeprefix(RANDOM)})"
        return f"{self.count} samples of {self.length} tokens from {source}, {how}"


def menu(
    sizes: Sizes, counts: Iterable[int], lengths: Iterable[int], sources: Iterable[str], selectors: Iterable[str]
) -> tuple[Subset, ...]:
    """Return every combination that exists, in order and without two names for the same samples.

    Args:
        sizes: samples of each source, "all" included, by length.
        counts: numbers of samples.
        lengths: numbers of tokens per sample.
        sources: "all" or names of sources.
        selectors: as the module's docstring lists them.

    Raises:
        ValueError: a length or source that the pool does not have, a count above all samples, an unknown selector,
            a length below 2, or no combination at all.
    """
    counts, sources, selectors = list(counts), list(sources), list(selectors)
    chosen = [
        canonical_subset(Subset(length, source, count, selector), sizes)
        for length in lengths
        for source in sources
        for count in counts
        # A source of a mix gives what it has; the pool as a whole must have every count.
        if source == ALL or count <= sizes.get(length, {}).get(source, count)
        for selector in selectors
    ]
    if not chosen:
        raise InputError(
            "an empty menu of subsets: expected at least one count, length, source and selector that go together"
        )
    return tuple(dict.fromkeys(chosen))


def canonical_subset(subset: Subset, sizes: Sizes) -> Subset:
    """Return the one name of a subset: ``whole`` for every sample of a source, "all" where the source is the only one.

    Raises:
        ValueError: a length, source or count that the pool does not have; the message says what it has.
    """
    if subset.length not in sizes:
        raise InputError(f"subset {subset}: the pool has samples of {', '.join(map(str, sizes))} tokens")
    of_length = sizes[subset.length]
    if subset.source not in of_length:
        raise InputError(f"subset {subset}: unknown source {subset.source!r}; the pool has {', '.join(of_length)}")
    size = of_length[subset.source]
    if subset.count > size or (subset.selector == WHOLE and subset.count < size):
        raise InputError(
            f"subset {subset}: {subset.count} samples wanted, the pool holds {size} of {subset.length} tokens "
            f"from {subset.source!r}"
        )
    source = ALL if size == of_length[ALL] else subset.source
    return replace(subset, source=source, selector=WHOLE if subset.count == size else subset.selector)


def select(subset: Subset, source: tuple[str, ...], losses: Tensor, features: Tensor) -> tuple[int, ...]:
    """Return the rows of a subset's samples, ascending.

    Args:
        subset: the subset.
        source: source of each of the N samples.
        losses: mean token loss of each sample, float32 ``[N]``, nats.
        features: a vector per sample, ``[N, D]``; only directions count.
    """
    here = torch.tensor([n for n, name in enumerate(source) if subset.source in (ALL, name)])
    return tuple(sorted(here[_order(subset, losses[here], features[here])[: subset.count]].tolist()))


def _order(subset: Subset, losses: Tensor, features: Tensor) -> Tensor:
    """Return sample positions whose first ``count`` are the subset: int64, at least that many."""
    if subset.selector.startswith(RANDOM):
        seed = int(subset.selector.removeprefix(RANDOM))
        return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).permutation(len(losses)))
    if subset.selector == "diverse":
        return _farthest_points(features, subset.count)
    ascending = losses.argsort(stable=True)
    if subset.selector == "high-loss":
        return losses.argsort(stable=True, descending=True)
    return ascending[(len(losses) - subset.count) // 2 :] if subset.selector == "middle-loss" else ascending


def _farthest_points(features: Tensor, count: int) -> Tensor:
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    chosen = [int((directions @ directions.mean(0)).argmax())]
    nearest = directions @ directions[chosen[0]]
    while len(chosen) < count:
        # Never again, even where all directions are the same.
        nearest[chosen[-1]] = torch.inf
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, directions @ directions[chosen[-1]])
    return torch.tensor(chosen)
