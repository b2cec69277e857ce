"""Statistics of one pass over the calibration text: per sample, and additive.

Row ``n`` of every per-sample quantity depends on sample ``n`` alone, so the statistics of any subset are its rows and
the statistics of two texts are their rows together. Two quantities are not sums over samples (they hold an absolute
value of a mean gradient); they belong to the whole set they were collected on and :meth:`Statistics.subset` drops them.
Subsets that were named beforehand have their own, and :meth:`Statistics.of_subset` is as if only they had been read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruneengine.common.errors import InputError
from pruneengine.common.files import write_atomically
from pruneengine.common.optional_imports import require_extra

# name: (per sample?, meaning); W is the linear's weight, G_n the gradient of sample n's mean token loss.
QUANTITIES = {
    "sum": (True, "sum over tokens of x, per site channel"),
    "squares": (True, "sum over tokens of x^2, per site channel"),
    "tokens": (True, "tokens that were sent to an expert, at its sites"),
    "signed": (True, "sum of W*G_n over each row (or column) of a member"),
    "fisher": (True, "sum of (W*G_n)^2 over each row (or column) of a member"),
    "abs_each": (True, "sum of |W*G_n| over each row (or column) of a member"),
    "abs_mean": (False, "sum of |W*mean_n G_n| over each row (or column) of a member"),
    "mix": (False, "sum of |W*mean_n G_n - W^2*mean_n(G_n^2)/2| over each row (or column) of a member"),
}
_OF_ROWS = {"x": lambda rows: rows, "|x|": Tensor.abs, "x^2": Tensor.square}
_FORMAT = "pruneengine.statistics/1"
_OF_SUBSETS = "@subsets"
_OTHER_DATA = "other calibration data (another text, nsamples, seqlen, seed, packing or tokenizer)"


@dataclass(frozen=True)
class Statistics:
    """Per-sample statistics of one model on one calibration set; its tensors must not change, for means are kept.

    Attributes:
        tensors: ``{quantity: {site or member module: tensor}}``, float32, ``[N, C]`` where the quantity is per sample
            and ``[C]`` where it is not.
        loss: mean token negative log-likelihood of each sample, float32 ``[N]``; empty when no loss was computed.
        num_samples, tokens_per_sample: the size of the calibration set.
        model: fingerprint of the model.
        data: hash of the token ids.
        subsets: named sets of samples, their indices.
        of_subsets: the quantities that are not per sample, one row for each of :attr:`subsets`: float32 ``[S, C]``, by
            names as in :attr:`tensors`.
    """

    tensors: dict[str, Mapping[str, Tensor]]
    num_samples: int
    tokens_per_sample: int
    model: str
    data: str
    loss: Tensor = field(default_factory=lambda: torch.empty(0))
    subsets: dict[str, tuple[int, ...]] = field(default_factory=dict)
    of_subsets: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _means: dict[tuple[str, str, str], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, without the means: each would cost a file, and is computed again in no time."""
        return vars(self) | {"_means": {}}

    def get(self, quantity: str, name: str) -> Tensor:
        """Return one tensor; ValueError with the quantities that were collected if it is not there."""
        try:
            return self.tensors[quantity][name]
        except KeyError:
            collected = ", ".join(sorted(self.tensors)) or "none"
            raise InputError(f"the statistics hold no {quantity!r} for {name!r}; collected: {collected}") from None

    def mean(self, quantity: str, name: str, of: str = "x") -> Tensor:
        """Return the mean over samples of a per-sample quantity, or another quantity itself: ``[C]``, read-only.

        Args:
            quantity: a name from :data:`QUANTITIES`.
            name: of a site or member module.
            of: "x" for the quantity as it is, "|x|" or "x^2" for its absolute value or square per sample.
        """
        key = (quantity, name, of)
        if key not in self._means:
            tensor = _OF_ROWS[of](self.get(quantity, name))
            self._means[key] = tensor.mean(0) if QUANTITIES[quantity][0] else tensor
        return self._means[key]

    def input_norm(self, site: str) -> Tensor:
        """Return Wanda's norm of each input channel of a site (Sun et al. 2024, eq. 1): float32 ``[C]``.

        The root of the mean over samples of the sum over tokens of ``x^2``, as the authors' code has it.

        Raises:
            ValueError: statistics without "squares" of this site.
        """
        return self.mean("squares", site).sqrt()

    def tokens(self, site: str) -> float:
        """Return the mean number of tokens per sample at a site.

        That is all of them; at an expert's site those that it was sent, taken as one in all if there were none.
        """
        if site not in self.tensors.get("tokens", {}):
            return self.tokens_per_sample
        return max(float(self.mean("tokens", site)), 1 / self.num_samples)

    def subset(self, samples: Sequence[int]) -> Statistics:
        """Return the statistics of some of the samples; quantities that are not additive are dropped."""
        index = torch.as_tensor(list(samples), dtype=torch.int64)
        if len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= self.num_samples:
            raise InputError(
                f"samples must be a non-empty choice from 0..{self.num_samples - 1}, got {list(samples)[:8]}"
            )
        tensors: dict[str, Mapping[str, Tensor]] = {
            q: _Rows(named, index) for q, named in self.tensors.items() if QUANTITIES[q][0]
        }
        data = f"{self.data}[{','.join(map(str, index.tolist()))}]"
        loss = self.loss[index] if len(self.loss) else self.loss
        return replace(self, tensors=tensors, num_samples=len(index), data=data, loss=loss, subsets={}, of_subsets={})

    def of_subset(self, name: str) -> Statistics:
        """Return the statistics of one of :attr:`subsets`, with the quantities that are not additive, all exact."""
        if name not in self.subsets:
            raise InputError(f"unknown subset {name!r}; collected: {', '.join(self.subsets) or 'none'}")
        rows, place = self.subset(self.subsets[name]), list(self.subsets).index(name)
        whole = {q: {member: t[place] for member, t in named.items()} for q, named in self.of_subsets.items()}
        return replace(rows, tensors=rows.tensors | whole)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both calibration sets together: the additive quantities that both have."""
        if (self.model, self.tokens_per_sample) != (other.model, other.tokens_per_sample):
            raise InputError(
                f"cannot merge statistics of model {self.model} x {self.tokens_per_sample} tokens with "
                f"{other.model} x {other.tokens_per_sample}: model and sample length must be equal"
            )
        shared = [q for q in self.tensors if QUANTITIES[q][0] and q in other.tensors]
        for quantity in shared:
            if differing := self.tensors[quantity].keys() ^ other.tensors[quantity].keys():
                raise InputError(f"cannot merge: only one side has {quantity!r} for {sorted(differing)[0]!r}")
        tensors: dict[str, Mapping[str, Tensor]] = {
            quantity: {
                name: torch.cat([t, other.tensors[quantity][name]]) for name, t in self.tensors[quantity].items()
            }
            for quantity in shared
        }
        # Losses are known only where a backward pass ran.
        loss = torch.cat([self.loss, other.loss]) if len(self.loss) and len(other.loss) else torch.empty(0)
        return replace(
            self,
            tensors=tensors,
            num_samples=self.num_samples + other.num_samples,
            data=f"{self.data}+{other.data}",
            loss=loss,
            subsets={},
            of_subsets={},
        )

    def check(self, model: str | None = None, data: str | None = None) -> Statistics:
        """Return the statistics; ValueError if they are of another model or calibration set."""
        for source, expected, own in (("another model", model, self.model), (_OTHER_DATA, data, self.data)):
            if expected is not None and expected != own:
                raise InputError(f"the statistics belong to {source}: expected {expected}, the file says {own}")
        return self

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        with require_extra("hf"):
            from safetensors.torch import save

        whole = {f"{q}{_OF_SUBSETS}": named for q, named in self.of_subsets.items()}
        flat = {
            f"{q}/{name}": t.contiguous() for q, named in (self.tensors | whole).items() for name, t in named.items()
        }
        header = {
            "format": _FORMAT,
            "num_samples": self.num_samples,
            "tokens_per_sample": self.tokens_per_sample,
            "model": self.model,
            "data": self.data,
            "subsets": self.subsets,
        }
        payload = save(flat | {"loss": self.loss.contiguous()}, metadata={"pruneengine": json.dumps(header)})
        write_atomically(path, payload)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file written by :meth:`save`; ValueError when it is corrupt or not one of ours."""
        with require_extra("hf"):
            from safetensors import SafetensorError, safe_open

        if Path(path).is_dir():
            raise InputError(f"{path}: not a statistics file, but a folder")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("pruneengine", "{}"))
                if header.get("format") != _FORMAT:
                    raise InputError(
                        f"{path}: not a statistics file (format {header.get('format')!r}, expected {_FORMAT!r})"
                    )
                flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: corrupt statistics file ({error})") from None
        del header["format"]
        loss = flat.pop("loss", None)
        tensors: dict[str, dict[str, Tensor]] = {}
        of_subsets: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            quantity, _, name = key.partition("/")
            place = of_subsets if quantity.endswith(_OF_SUBSETS) else tensors
            place.setdefault(quantity.removesuffix(_OF_SUBSETS), {})[name] = tensor
        try:
            # Files without subsets are older.
            subsets = {name: tuple(samples) for name, samples in header.pop("subsets", {}).items()}
            statistics = cls(tensors={**tensors}, loss=loss, subsets=subsets, of_subsets=of_subsets, **header)
            statistics._validate()
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: corrupt statistics file ({error})") from None
        return statistics

    def _validate(self) -> None:
        if type(self.num_samples) is not int or self.loss is None or len(self.loss) not in (0, self.num_samples):
            raise InputError(f"losses of {self.num_samples} samples are missing")
        checked_subsets(self.subsets, self.num_samples)
        for quantity, named in self.tensors.items():
            if quantity not in QUANTITIES:
                raise InputError(f"unknown quantity {quantity!r}")
            per_sample = QUANTITIES[quantity][0]
            for name, tensor in named.items():
                _require(quantity, name, tensor, self.num_samples if per_sample else None)
            if self.subsets and not per_sample and self.of_subsets.get(quantity, {}).keys() != named.keys():
                raise InputError(f"{quantity} of {len(self.subsets)} subsets is missing")
        for quantity, named in self.of_subsets.items():
            for name, tensor in named.items():
                _require(f"{quantity} of subsets", name, tensor, len(self.subsets))


def checked_subsets(subsets: Mapping[str, Sequence[int]], num_samples: int) -> dict[str, tuple[int, ...]]:
    """Return named sets of samples; ValueError if one is empty, repeats a sample or names one that is not there."""
    checked = {name: tuple(samples) for name, samples in subsets.items()}
    for name, samples in checked.items():
        known = set(range(num_samples)).issuperset(samples)
        if not samples or len(set(samples)) < len(samples) or not known:
            raise InputError(
                f"subset {name!r} must be different samples from 0..{num_samples - 1}, got {list(samples)[:8]}"
            )
    return checked


class _Rows(Mapping[str, Tensor]):
    """Some rows of every tensor, taken when a tensor is read: of most subsets only means ever are."""

    def __init__(self, named: Mapping[str, Tensor], index: Tensor) -> None:
        self._named, self._index = named, index

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._named[name]
        whole = len(self._index) == len(tensor) and bool((self._index.diff() == 1).all())
        return tensor if whole else tensor[self._index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


def _require(quantity: str, name: str, tensor: Tensor, rows: int | None) -> None:
    """Raise ValueError unless a tensor is a float32 matrix with the given number of rows, or a vector for None."""
    fits = tensor.dim() == 1 if rows is None else tensor.dim() == 2 and len(tensor) == rows
    if tensor.dtype != torch.float32 or not fits:
        raise InputError(f"{quantity} of {name} is {tensor.dtype} {list(tensor.shape)}")
