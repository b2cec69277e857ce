"""The layers that a prune has finished, kept in a folder until all are: what was stopped goes on where it was.

Only weights are kept: a layer that is there is given them and run once, which makes the hidden states of the text anew.
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

from pruneengine.common.files import check_writable, write_atomically
from pruneengine.common.optional_imports import require_extra
from pruneengine.model import get_linear
from pruneengine.sparse.matrices import Matrix

# A prune that is over sooner is not worth a copy of the model on the disk.
AFTER_SECONDS = 60.0
_JOB = "job.json"


def partial_folder(out: Path) -> Path:
    """Where a prune into the checkpoint folder ``out`` keeps its layers: beside it, on the same disk."""
    out = Path(out).expanduser().resolve()
    return out.with_name(f"{out.name}.partial")


def remove_partial(folder: Path) -> None:
    """Remove the layers of a prune that is over, and nothing else that may be there."""
    if not (folder / _JOB).exists():
        return
    for path in (*folder.glob("layer-*.safetensors"), *_torn(folder), folder / _JOB):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_partial(folder: Path, job: Mapping[str, Any], whole: bool = False) -> None:
    """Refuse a folder of layers that :class:`PartialPrune` would refuse.

    Args:
        folder: need not exist.
        job: as much of the job as is known.
        whole: it is all of it, so that a folder that says more of its own is another's.

    Raises:
        ValueError: as :class:`PartialPrune`.
    """
    if not folder.exists() or (folder.is_dir() and not set(folder.iterdir()) - set(_torn(folder))):
        return
    job = json.loads(json.dumps(job))
    try:
        held = json.loads((folder / _JOB).read_text())
        names = job.keys() | held.keys() if whole else job.keys()
        differ = sorted(name for name in names if job.get(name) != held.get(name))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no layers of a prune ({error}); it is not used") from None
    if differ:
        changes = ", ".join(f"{name} {held.get(name)!r}, now {job.get(name)!r}" for name in differ)
        raise ValueError(
            f"{folder} holds the layers of an unfinished prune with other settings: {changes}; repeat it "
            "with the same ones, or delete the folder to begin anew"
        )


def _torn(folder: Path) -> list[Path]:
    """What was being written when a process was killed."""
    return [*folder.glob(".layer-*.safetensors.*"), *folder.glob(f".{_JOB}.*")]


@dataclass(frozen=True)
class KeptLayer:
    """Weights of a pruned layer by module path, and what went otherwise than asked."""

    weights: dict[str, Tensor]
    warnings: tuple[str, ...]


class PartialPrune:
    """Layers of one prune, in a folder of its own.

    Args:
        folder: made once there is something to keep.
        job: all that decides the weights, flat and plain.

    Attributes:
        warnings: why layers are not kept any more.

    Raises:
        ValueError: the folder holds layers of another prune (it says what differs), or no such layers at all.
        PermissionError: it cannot be written to.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self._folder, self._job = folder, json.loads(json.dumps(job))
        self._begun, self._waiting = math.inf, []
        self.warnings: list[str] = []
        check_writable(folder)
        check_partial(folder, job, whole=True)

    def load(self, layer: int) -> KeptLayer | None:
        """A layer that was kept.

        Raises:
            ValueError: its file is damaged.
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
            raise ValueError(f"{path} is damaged ({error}); delete it, and its layer is pruned again") from None

    def keep(self, model: nn.Module, matrices: Sequence[Matrix], warnings: Sequence[str]) -> None:
        """Take in a layer's matrices as they are now; they are written once the prune has lasted a while."""
        self._waiting.append((matrices, tuple(warnings)))
        if self.warnings or time.monotonic() - self._begun < AFTER_SECONDS:
            return
        try:
            while self._waiting:
                self._write(model, *self._waiting[0])
                self._waiting.pop(0)
        except OSError as error:
            # A full disk ends the keeping, and not the prune.
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
