"""Statistics: what one pass over the calibration text leaves behind, per sample and additive.

Row ``n`` of every per-sample quantity depends on sample ``n`` alone, so the statistics of any subset are its rows and
the statistics of two texts are their rows together. Two quantities are not sums over samples (they hold an absolute
value of a mean gradient); they belong to the whole set they were collected on and :meth:`Statistics.subset` drops them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pruneengine.extras import needs
from pruneengine.files import write_atomically

# name: (per sample?, meaning); W is the linear's weight, G_n the gradient of sample n's mean token loss.
QUANTITIES = {
    "sum": (True, "sum over tokens of x, per site channel"),
    "squares": (True, "sum over tokens of x^2, per site channel"),
    "signed": (True, "sum of W*G_n over each row (or column) of a member"),
    "fisher": (True, "sum of (W*G_n)^2 over each row (or column) of a member"),
    "abs_each": (True, "sum of |W*G_n| over each row (or column) of a member"),
    "abs_mean": (False, "sum of |W*mean_n G_n| over each row (or column) of a member"),
    "mix": (False, "sum of |W*mean_n G_n - W^2*mean_n(G_n^2)/2| over each row (or column) of a member"),
}
_FORMAT = "pruneengine.statistics/1"


@dataclass(frozen=True)
class Statistics:
    """Per-sample statistics of one model on one calibration set.

    Attributes:
        tensors: ``{quantity: {site or member module: tensor}}``, float32, ``[N, C]`` where the quantity is per sample
            and ``[C]`` where it is not.
        loss: mean token negative log-likelihood of each sample, float32 ``[N]``; empty when no loss was computed.
        num_samples, tokens_per_sample: the size of the calibration set.
        model: fingerprint of the model; data: hash of the token ids.
    """

    tensors: dict[str, dict[str, Tensor]]
    num_samples: int
    tokens_per_sample: int
    model: str
    data: str
    loss: Tensor = field(default_factory=lambda: torch.empty(0))

    def get(self, quantity: str, name: str) -> Tensor:
        """One tensor; raises ValueError naming the quantities that were collected when it is not there."""
        try:
            return self.tensors[quantity][name]
        except KeyError:
            collected = ", ".join(sorted(self.tensors)) or "none"
            raise ValueError(f"the statistics hold no {quantity!r} for {name!r}; collected: {collected}") from None

    def mean(self, quantity: str, name: str) -> Tensor:
        """The mean over samples of a per-sample quantity, or the quantity itself: ``[C]``."""
        tensor = self.get(quantity, name)
        return tensor.mean(0) if QUANTITIES[quantity][0] else tensor

    def subset(self, samples: Sequence[int]) -> Statistics:
        """The statistics of some of the samples; quantities that are not additive are dropped."""
        index = torch.as_tensor(list(samples), dtype=torch.int64)
        if len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= self.num_samples:
            raise ValueError(
                f"samples must be a non-empty choice from 0..{self.num_samples - 1}, got {list(samples)[:8]}"
            )
        tensors = {
            quantity: {name: tensor[index] for name, tensor in named.items()}
            for quantity, named in self.tensors.items()
            if QUANTITIES[quantity][0]
        }
        data = f"{self.data}[{','.join(map(str, index.tolist()))}]"
        loss = self.loss[index] if len(self.loss) else self.loss
        return replace(self, tensors=tensors, num_samples=len(index), data=data, loss=loss)

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both calibration sets together; keeps the additive quantities that both have."""
        if (self.model, self.tokens_per_sample) != (other.model, other.tokens_per_sample):
            raise ValueError(
                f"cannot merge statistics of model {self.model} x {self.tokens_per_sample} tokens with "
                f"{other.model} x {other.tokens_per_sample}: model and sample length must be equal"
            )
        shared = [q for q in self.tensors if QUANTITIES[q][0] and q in other.tensors]
        for quantity in shared:
            if differing := self.tensors[quantity].keys() ^ other.tensors[quantity].keys():
                raise ValueError(f"cannot merge: only one side has {quantity!r} for {sorted(differing)[0]!r}")
        tensors = {
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
        )

    def check(self, model: str | None = None, data: str | None = None) -> Statistics:
        """Refuse statistics of another model or of another calibration set."""
        for what, expected, found in (("model", model, self.model), ("calibration data", data, self.data)):
            if expected is not None and expected != found:
                raise ValueError(f"the statistics belong to another {what}: expected {expected}, the file says {found}")
        return self

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        with needs("hf"):
            from safetensors.torch import save

        flat = {f"{q}/{name}": t.contiguous() for q, named in self.tensors.items() for name, t in named.items()}
        header = {
            "format": _FORMAT,
            "num_samples": self.num_samples,
            "tokens_per_sample": self.tokens_per_sample,
            "model": self.model,
            "data": self.data,
        }
        payload = save(flat | {"loss": self.loss.contiguous()}, metadata={"pruneengine": json.dumps(header)})
        write_atomically(path, payload)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file written by :meth:`save`; ValueError when it is corrupt or not one of ours."""
        with needs("hf"):
            from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("pruneengine", "{}"))
                if header.get("format") != _FORMAT:
                    raise ValueError(
                        f"{path}: not a statistics file (format {header.get('format')!r}, expected {_FORMAT!r})"
                    )
                flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: corrupt statistics file ({error})") from None
        del header["format"]
        loss = flat.pop("loss", None)
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
            quantity, _, name = key.partition("/")
            tensors.setdefault(quantity, {})[name] = tensor
        try:
            found = cls(tensors=tensors, loss=loss, **header)
            found._validate()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: corrupt statistics file ({error})") from None
        return found

    def _validate(self) -> None:
        if type(self.num_samples) is not int or self.loss is None or len(self.loss) not in (0, self.num_samples):
            raise ValueError(f"losses of {self.num_samples} samples are missing")
        for quantity, named in self.tensors.items():
            if quantity not in QUANTITIES:
                raise ValueError(f"unknown quantity {quantity!r}")
            dims = 2 if QUANTITIES[quantity][0] else 1
            for name, tensor in named.items():
                rows_fit = dims == 1 or len(tensor) == self.num_samples
                if tensor.dtype != torch.float32 or tensor.dim() != dims or not rows_fit:
                    raise ValueError(f"{quantity} of {name} is {tensor.dtype} {list(tensor.shape)}")
