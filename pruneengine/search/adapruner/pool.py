"""Calibration pool of a search: exact statistics of every subset on a menu, collected once and kept on disk.

For each length a forward pass gives activations and losses, from which the menu's subsets follow. A backward pass then
collects the remaining quantities, for each subset exactly. A trial only looks up its subset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruneengine.calibration.calibrate import ACTIVATIONS, calibrate
from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.common.files import check_writable
from pruneengine.common.progress import track
from pruneengine.data.samples import Samples
from pruneengine.model import KINDS, Structure, find_groups, model_fingerprint
from pruneengine.search.adapruner.space.subsets import ALL, Subset, canonical_subset, menu, select

# Number of subsets that keep the means their scores are made of: little beside the rows of the pool.
_RECENT = 16


@dataclass(frozen=True)
class SubsetOptions:
    """Choices of a search; the menu is every combination.

    Attributes:
        counts: numbers of samples, smallest and largest included.
        selectors: as :mod:`pruneengine.search.adapruner.space.subsets` names them.
        sources: "all" or names of sources.
        lengths: tokens per sample; None for every length of the pool.
    """

    counts: tuple[int, ...]
    selectors: tuple[str, ...]
    sources: tuple[str, ...] = (ALL,)
    lengths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pool:
    """Samples by length, the subsets that may be chosen, and their statistics.

    Attributes:
        samples: the windows of each length.
        menu: the subsets.
        collected: statistics of all samples of a length, with those of its subsets.
    """

    samples: dict[int, Samples]
    menu: tuple[Subset, ...]
    collected: dict[int, Statistics]
    _recent: dict[Subset, Statistics] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def largest(self) -> Subset:
        """Subset of all samples of the greatest length, or of the most that the menu offers."""
        return max(self.menu, key=lambda s: (s.length, s.count, s.source == ALL))

    def statistics(self, subset: Subset) -> Statistics:
        """Return statistics as of a pass over the subset's samples alone.

        Raises:
            ValueError: a subset that is not on the menu, under any of its names.
        """
        known = canonical_subset(subset, pool_sizes(self.samples))
        if known not in self.menu:
            raise InputError(
                f"subset {subset} is not on the menu of {len(self.menu)}: {', '.join(map(str, self.menu))}"
            )
        statistics = self._recent.pop(known, None) or self.collected[known.length].of_subset(str(known))
        while len(self._recent) >= _RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[known] = statistics
        return statistics

    def chosen(self, subset: Subset) -> Samples:
        """Return the windows of a subset, in the order of its statistics' rows."""
        known = canonical_subset(subset, pool_sizes(self.samples))
        pool, rows = self.samples[known.length], list(self.collected[known.length].subsets[str(known)])
        return Samples(pool.tokens[rows], tuple(pool.source[row] for row in rows))


def pool_sizes(samples: Mapping[int, Samples]) -> dict[int, dict[str, int]]:
    """Return the number of samples of each source by length; "all" comes first."""
    return {
        length: {ALL: len(windows)} | {name: windows.source.count(name) for name in dict.fromkeys(windows.source)}
        for length, windows in samples.items()
    }


def collect_pool(
    model: nn.Module,
    samples: Mapping[int, Samples],
    quantities: Iterable[str],
    options: SubsetOptions,
    *,
    structure: Structure | None = None,
    kinds: Collection[str] = KINDS,
    layers: range | None = None,
    batch_size: int = 8,
    cache: Path | None = None,
    collect: bool = True,
) -> Pool:
    """Return statistics of every subset on the menu, from two passes per length or the files of an earlier call.

    Args:
        model: the dense model.
        samples: windows by their length, each with its source.
        quantities: quantities that the metrics of the search read; ``sum`` is always collected.
        options: the menu.
        structure: as for :func:`calibrate`.
        kinds: kinds of units that will be pruned, as for :func:`calibrate`.
        layers: decoder layers to collect for, as for :func:`calibrate`.
        batch_size: samples per forward pass, as for :func:`calibrate`.
        cache: a folder with a file for every length, written when that length is done. A file of the same model,
            samples, quantities, layers and menu is read instead of a pass.
        collect: False reads the cache alone, and writes nothing there.

    Raises:
        FileNotFoundError: the cache has no such file, and ``collect`` is False.
        ValueError: a menu that the samples do not allow, samples filed under another length, or a source called "all".
            Also a file in the cache that is damaged or not what its name says, and as :func:`calibrate`.
        PermissionError: the cache cannot be written.
    """
    samples = _checked(samples)
    lengths = options.lengths if options.lengths is not None else tuple(samples)
    chosen = menu(pool_sizes(samples), options.counts, lengths, options.sources, options.selectors)
    structure = structure or find_groups(model)
    layers = layers if layers is not None else range(structure.num_layers)
    quantities = frozenset(quantities) | {"sum"}
    settings = {"structure": structure, "kinds": kinds, "layers": layers, "batch_size": batch_size}
    if cache is not None and collect:
        check_writable(Path(cache))
    fingerprint = model_fingerprint(model)
    collected = {}
    for length in track(dict.fromkeys(lengths), "calibration pool"):
        of_length = tuple(subset for subset in chosen if subset.length == length)
        key = _key(fingerprint, samples[length], quantities, of_length, kinds, layers)
        path = None if cache is None else Path(cache) / f"pool-{length}-{key}.safetensors"
        if path is not None and path.exists():
            collected[length] = _read(path, fingerprint, samples[length], quantities, of_length)
            continue
        if not collect:
            raise FileNotFoundError(f"{path}: the statistics of this pool were not collected there")
        collected[length] = _collect(model, samples[length], quantities, of_length, settings)
        if path is not None:
            collected[length].save(path)
    return Pool(samples, chosen, collected)


def _checked(samples: Mapping[int, Samples]) -> dict[int, Samples]:
    if not samples:
        raise InputError("a pool without samples: expected at least one length")
    for length, windows in samples.items():
        if length < 2:
            raise InputError(f"samples of {length} token(s): expected lengths of at least 2")
        if windows.tokens.shape[1] != length or not len(windows):
            raise InputError(
                f"samples under length {length} are {list(windows.tokens.shape)}, expected [N, {length}], N > 0"
            )
        if ALL in windows.source:
            raise InputError(f"samples of {length} tokens have a source called {ALL!r}, which means every source")
    return dict(samples)


def _collect(
    model: nn.Module, samples: Samples, quantities: frozenset[str], chosen: tuple[Subset, ...], settings: dict[str, Any]
) -> Statistics:
    """Collect activations and losses in a forward pass, choose the subsets by them, and collect the rest backward."""
    first = calibrate(model, samples, quantities & ACTIVATIONS, losses=True, **settings)
    subsets = {str(subset): select(subset, samples.source, first.loss, _features(first, settings)) for subset in chosen}
    first = replace(first, subsets=subsets)
    if not quantities - ACTIVATIONS:
        return first
    second = calibrate(model, samples, quantities - ACTIVATIONS, subsets=subsets, **settings)
    return replace(first, tensors=first.tensors | second.tensors, of_subsets=second.of_subsets)


def _features(statistics: Statistics, settings: dict[str, Any]) -> Tensor:
    """Return each sample's mean input of the last layer's MLP, or attention without one: ``[N, hidden]``."""
    sites = [f"layers.{settings['layers'][-1]}.{name}" for name in ("mlp_in", "attn_in")]
    site = next(site for site in sites if site in statistics.tensors["sum"])
    return statistics.get("sum", site) / statistics.tokens_per_sample


def _key(
    fingerprint: str,
    samples: Samples,
    quantities: frozenset[str],
    chosen: tuple[Subset, ...],
    kinds: Collection[str],
    layers: range,
) -> str:
    """Return a hash of all that the statistics of one length depend on, as 16 hex digits."""
    parts = [fingerprint, samples.hash, samples.source, sorted(quantities), [str(s) for s in chosen]]
    content = json.dumps([*parts, sorted(kinds), list(layers)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read(
    path: Path, fingerprint: str, samples: Samples, quantities: frozenset[str], chosen: tuple[Subset, ...]
) -> Statistics:
    """Read a file of the cache; raise ValueError if it is damaged or not what its name says."""
    try:
        statistics = Statistics.load(path).check(fingerprint, samples.hash)
        for what, expected, inside in (
            ("subsets", {str(subset) for subset in chosen}, statistics.subsets.keys()),
            # Tokens are counted for experts alone, and come with the sums over them.
            ("quantities", quantities - {"tokens"}, statistics.tensors.keys() - {"tokens"}),
        ):
            if differing := sorted(expected ^ inside):
                raise InputError(f"other {what} than its name says, {differing[0]!r} for one")
    except ValueError as error:
        raise InputError(f"{error}; {path} is no pool of this search: delete it, and it is collected again") from None
    return statistics
