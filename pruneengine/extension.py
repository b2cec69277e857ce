"""The C++/CUDA extension behind the reference's signatures: tensors in, raw pointers to ``pruneengine._C``.

Nothing is checked here: :mod:`pruneengine.ops` does that before it calls. The gathers take ``out``, a view with rows of
its own stride, so that compaction can write into a buffer that already exists.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

HOW_TO_BUILD = "not built; run `pip install -e .` or `python setup.py build_ext --inplace` with a C++ compiler"
CUDA_OPS = ("kth_value", "select_mask", "gather_rows", "gather_columns")


@functools.cache
def load() -> ModuleType | str:
    """The compiled module, or why there is none."""
    try:
        return importlib.import_module("pruneengine._C")
    except ModuleNotFoundError:
        return build_info().get("cpu", HOW_TO_BUILD)
    except ImportError as error:
        return f"built, but does not load: {error}"


@functools.cache
def build_info() -> dict[str, str]:
    """What setup.py recorded: the mode and, for ``cpu`` and ``cuda``, "built" or the reason why not; {} if nothing."""
    record = Path(__file__).with_name("_build_info.json")
    return json.loads(record.read_text()) if record.is_file() else {}


def why_not_cpp() -> str | None:
    """None where the C++ ops can run, else the reason."""
    module = load()
    return f"no C++ extension: {module}" if isinstance(module, str) else None


def why_not_cuda() -> str | None:
    """None where the CUDA ops can run, else the reason."""
    module = load()
    if isinstance(module, str):
        return f"no C++ extension: {module}"
    if not hasattr(module, "cuda"):
        return f"the extension was built without CUDA: {build_info().get('cuda', HOW_TO_BUILD)}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


def _dtype(tensor: Tensor) -> object:
    return getattr(load().Dtype, str(tensor.dtype).removeprefix("torch."))


def _on(tensor: Tensor) -> tuple[ModuleType, tuple[int, ...]]:
    """The module for the tensor's device, and the arguments every function of it ends with."""
    if not tensor.is_cuda:
        return load().cpu, (torch.get_num_threads(),)
    return load().cuda, (tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def activation_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x if x.stride(2) == 1 else x.contiguous()
    samples, tokens, channels = x.shape
    total, squares, peak = (_empty(x, samples, channels) for _ in range(3))
    module, where = _on(x)
    outputs = total.data_ptr(), squares.data_ptr(), peak.data_ptr()
    module.activation_stats(x.data_ptr(), *x.stride()[:2], _dtype(x), samples, tokens, channels, *outputs, *where)
    return total, squares, peak


def gate_scores(x: Tensor, dx: Tensor) -> Tensor:
    x, dx = (t if t.stride(2) == 1 else t.contiguous() for t in (x, dx))
    samples, _, channels = x.shape
    scores = _empty(x, samples, channels)
    module, where = _on(x)
    inputs = x.data_ptr(), *x.stride()[:2], dx.data_ptr(), *dx.stride()[:2]
    module.gate_scores(*inputs, _dtype(x), *x.shape, scores.data_ptr(), *where)
    return scores


def weight_scores(
    weight: Tensor, norm: Tensor | None = None, power: float = 1.0, norm_power: float = 1.0
) -> tuple[Tensor, Tensor]:
    rows, columns = _empty(weight, weight.shape[0]), _empty(weight, weight.shape[1])
    module, where = _on(weight)
    factor = norm.contiguous() if norm is not None else None
    inputs = weight.data_ptr(), weight.stride(0), _dtype(weight), *weight.shape
    outputs = rows.data_ptr(), columns.data_ptr()
    module.weight_scores(*inputs, 0 if factor is None else factor.data_ptr(), power, norm_power, *outputs, *where)
    return rows, columns


def taylor_scores(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = _empty(weight, 3, weight.shape[0]), _empty(weight, 3, weight.shape[1])
    module, where = _on(weight)
    inputs = [argument for t in (weight, gradient) for argument in (t.data_ptr(), t.stride(0), _dtype(t))]
    module.taylor_scores(*inputs, *weight.shape, rows.data_ptr(), columns.data_ptr(), *where)
    return rows, columns


def kth_value(scores: Tensor, k: int) -> Tensor:
    values = _empty(scores, scores.shape[0])
    module, where = _on(scores)
    module.kth_value(scores.data_ptr(), scores.stride(0), _dtype(scores), *scores.shape, k, values.data_ptr(), *where)
    return values


def select_mask(scores: Tensor, k: int) -> Tensor:
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    module, where = _on(scores)
    module.select_mask(scores.data_ptr(), scores.stride(0), _dtype(scores), *scores.shape, k, mask.data_ptr(), *where)
    return mask


def gather_rows(weight: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = weight.new_empty(index.numel(), *weight.shape[1:])
    table, target = (t if t.dim() == 2 else t[:, None] for t in (weight, out))
    return _gather("gather_rows", table, index, out, target, table.shape[1], table.shape[0])


def gather_columns(weight: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = weight.new_empty(weight.shape[0], index.numel())
    return _gather("gather_columns", weight, index, out, out, weight.shape[0], weight.shape[1])


def _gather(op: str, weight: Tensor, index: Tensor, out: Tensor, target: Tensor, other: int, bound: int) -> Tensor:
    """``other`` is the length of the axis that stays whole, ``bound`` of the one that the index runs over."""
    module, where = _on(weight)
    index = index.contiguous()
    bounds = (bound,) if weight.is_cuda else ()
    arguments = weight.data_ptr(), weight.stride(0), weight.element_size(), other, *bounds, index.data_ptr()
    getattr(module, op)(*arguments, index.numel(), target.data_ptr(), target.stride(0), *where)
    return out
