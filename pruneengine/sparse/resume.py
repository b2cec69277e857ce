"""Finished layers of a prune on disk, so that a stopped prune can continue.

Only weights are stored. A layer that is there gets its weights back and is run once, which computes the hidden states
of the text anew.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.common.files import check_writable, write_atomically
from pruneengine.common.optional_imports import require_extra
from pruneengine.model import get_linear
from pruneengine.sparse.matrices import Matrix

# A shorter prune is not worth a copy of the model on disk.
AFTER_SECONDS = 60.0
_JOB = "job.json"


@dataclass(frozen=True)
class KeptLayer:
    """Weights of a pruned layer by module path, and the warnings of its prune."""

    weights: dict[str, Tensor]
    warnings: tuple[str, ...]


class PartialPrune:
    """Store of the finished layers of one prune, in a folder of its own.

    Args:
        folder: created with the first layer that is stored.
        job: flat mapping of plain values: every setting that decides the weights.

    Attributes:
        warnings: the reason if layers are not stored any more.

    Raises:
        ValueError: the folder holds layers of another prune (the message says what differs), or other things.
        PermissionError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self._folder, self._job = folder, json.loads(json.dumps(job))
        self._begun = math.inf
        self._waiting: list[tuple[Sequence[Matrix], tuple[str, ...]]] = []
        self.warnings: list[str] = []
        check_writable(folder)
        check_partial(folder, job, whole=True)

    def load(self, layer: int) -> KeptLayer | None:
        """Return the stored layer of this index; None where there is none.

        Raises:
            ValueError: the layer's file is damaged.
        """
        with require_extra("hf"):
            from safetensors import SafetensorError, safe_open

        self._begun = min(self._begun, time.monotonic())
        path = self._path(layer)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                warnings = json.loads(file.metadata()["warnings"])
                return KeptLayer({name: file.get_tensor(name) for name in file.keys()}, tuple(warnings))  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); delete it, and its layer is pruned again") from None

    def keep(self, model: nn.Module, matrices: Sequence[Matrix], warnings: Sequence[str]) -> None:
        """Store a layer's matrices as they are now. They are written once the prune has lasted a while."""
        self._waiting.append((matrices, tuple(warnings)))
        if self.warnings or time.monotonic() - self._begun < AFTER_SECONDS:
            return
        try:
            while self._waiting:
                self._write(model, *self._waiting[0])
                self._waiting.pop(0)
        except OSError as error:
            # A full disk ends the storing of layers, but not the prune.
            self.warnings.append(f"from layer {self._waiting[0][0][0].layer} on no layer was kept on the way: {error}")

    def _write(self, model: nn.Module, matrices: Sequence[Matrix], warnings: tuple[str, ...]) -> None:
        from safetensors.torch import save

        if not (self._folder / _JOB).exists():
            write_atomically(self._folder / _JOB, json.dumps(self._job, indent=2) + "\n")
        weights = {matrix.name: get_linear(model, matrix.name).weight.detach().cpu() for matrix in matrices}
        payload = save(
            {name: weight.contiguous() for name, weight in weights.items()}, {"warnings": json.dumps(warnings)}
        )
        write_atomically(self._path(matrices[0].layer), payload)

    def _path(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:05}.safetensors"


def partial_folder(out: Path) -> Path:
    """Return the folder for finished layers of a prune into ``out``: beside it, on the same disk."""
    out = Path(out).expanduser().resolve()
    return out.with_name(f"{out.name}.partial")


def remove_partial(folder: Path) -> None:
    """Remove the layers of a prune that is over, and no other file of the folder."""
    if not (folder / _JOB).exists():
        return
    for path in (*folder.glob("layer-*.safetensors"), *_torn(folder), folder / _JOB):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_partial(folder: Path, job: Mapping[str, Any], whole: bool = False) -> None:
    """Raise ValueError for a folder that :class:`PartialPrune` would refuse.

    Args:
        folder: need not exist.
        job: the known part of the job.
        whole: ``job`` is complete, so that a folder with further settings belongs to another prune.

    Raises:
        ValueError: as :class:`PartialPrune`.
    """
    if not folder.exists() or (folder.is_dir() and not set(folder.iterdir()) - set(_torn(folder))):
        return
    job = json.loads(json.dumps(job))
    try:
        stored = json.loads((folder / _JOB).read_text())
        names = job.keys() | stored.keys() if whole else job.keys()
        differ = sorted(name for name in names if job.get(name) != stored.get(name))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder} holds no layers of a prune ({error}); it is not used") from None
    if differ:
        changes = ", ".join(f"{name} {stored.get(name)!r}, now {job.get(name)!r}" for name in differ)
        raise InputError(
            f"{folder} holds the layers of an unfinished prune with other settings: {changes}; repeat it "
            "with the same ones, or delete the folder to begin anew"
        )


def _torn(folder: Path) -> list[Path]:
    """Return the half-written files that a killed process left."""
    return [*folder.glob(".layer-*.safetensors.*"), *folder.glob(f".{_JOB}.*")]
