"""Calls into the C++/CUDA extension ``pruneengine._C``: the reference's signatures, tensors passed as raw pointers.

Arguments are not checked here: :mod:`pruneengine.ops` does that before it calls. The gathers take ``out``, a view whose
rows have their own stride, so that compaction can write into an existing buffer.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from pruneengine.ops.reference import HISTOGRAM_BINS, MOMENTS

TILE_ROWS = 256  # of the scratch tile in taylor_scores_outer: a product large enough for torch, small beside a weight
HOW_TO_BUILD = "not built; run `pip install -e .` or `python setup.py build_ext --inplace` with a C++ compiler"
CUDA_OPS = (
    *("kth_value", "select_mask", "kth_value_global", "select_mask_global"),
    *("gather_rows", "gather_columns", "compact_layer"),
)


@functools.cache
def load() -> ModuleType | str:
    """Return the compiled module, or the reason why there is none."""
    try:
        return importlib.import_module("pruneengine._C")
    except ModuleNotFoundError:
        return build_info().get("cpu", HOW_TO_BUILD)
    except ImportError as error:
        return f"built, but does not load: {error}"


@functools.cache
def build_info() -> dict[str, str]:
    """Return the record of setup.py: the mode and, for ``cpu`` and ``cuda``, "built" or the reason why not.

    Without a record it is {}.
    """
    record = Path(__file__).parents[1] / "_build_info.json"
    return json.loads(record.read_text()) if record.is_file() else {}


def why_not_cpp() -> str | None:
    """Return None if the C++ ops can run, else the reason."""
    module = load()
    return f"no C++ extension: {module}" if isinstance(module, str) else None


def why_not_cuda() -> str | None:
    """Return None if the CUDA ops can run, else the reason."""
    module = load()
    if isinstance(module, str):
        return f"no C++ extension: {module}"
    if not hasattr(module, "cuda"):
        return f"the extension was built without CUDA: {build_info().get('cuda', HOW_TO_BUILD)}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


def _module() -> ModuleType:
    module = load()
    assert isinstance(module, ModuleType), module
    return module


def _dtype(tensor: Tensor) -> object:
    return getattr(_module().Dtype, str(tensor.dtype).removeprefix("torch."))


def _on(tensor: Tensor) -> tuple[ModuleType, tuple[int, ...]]:
    """Return the module for the tensor's device, and the last arguments of every function in it."""
    if not tensor.is_cuda:
        return _module().cpu, (torch.get_num_threads(),)
    return _module().cuda, (tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream)


def _matrix(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.stride(0), _dtype(tensor), *tensor.shape


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _contiguous(norm: Tensor | None) -> Tensor | None:
    return None if norm is None else norm.contiguous()


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
    weight: Tensor, norms: Tensor | None, powers: Sequence[float], norm_powers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    rows, columns = (_empty(weight, len(powers), size) for size in weight.shape)
    module, where = _on(weight)
    factors = None if norms is None else norms.pow(norms.new_tensor(norm_powers)[:, None]).contiguous()
    outputs = rows.data_ptr(), columns.data_ptr()
    module.weight_scores(*_matrix(weight), _address(factors), list(powers), *outputs, *where)
    return rows, columns


def taylor_scores(weight: Tensor, gradient: Tensor, absolute_only: bool = False) -> tuple[Tensor, Tensor]:
    rows, columns = (_empty(weight, 1 if absolute_only else 3, size) for size in weight.shape)
    module, where = _on(weight)
    inputs = [argument for t in (weight, gradient) for argument in (t.data_ptr(), t.stride(0), _dtype(t))]
    module.taylor_scores(*inputs, *weight.shape, absolute_only, rows.data_ptr(), columns.data_ptr(), *where)
    return rows, columns


def taylor_scores_outer(weight: Tensor, delta: Tensor, x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    """Form the gradient in one scratch tile at a time: torch multiplies, :func:`taylor_scores` reduces."""
    delta, x = delta.float(), x.float()
    if not per_sample:
        delta, x = delta.flatten(0, 1)[None], x.flatten(0, 1)[None]
    rows, columns = (_empty(weight, len(x), 3, size) for size in weight.shape)
    scratch = _empty(weight, min(TILE_ROWS, weight.shape[0]), weight.shape[1])
    columns.zero_()
    for n in range(len(x)):
        for begin in range(0, weight.shape[0], TILE_ROWS):
            tile = slice(begin, begin + TILE_ROWS)
            gradient = scratch[: weight[tile].shape[0]]
            torch.mm(delta[n, :, tile].T, x[n], out=gradient)
            rows[n, :, tile], part = taylor_scores(weight[tile], gradient)
            columns[n] += part
    return rows, columns


def block_moments(
    weight: Tensor, norm: Tensor | None, power: float, norm_power: float, thresholds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    moments = torch.empty(len(MOMENTS), dtype=torch.float64, device=weight.device)
    above, histogram = (
        torch.empty(size, dtype=torch.int64, device=weight.device) for size in (len(thresholds), HISTOGRAM_BINS)
    )
    factors = None if norm is None else norm.pow(norm_power).contiguous()
    thresholds = thresholds.contiguous()
    module, where = _on(weight)
    bounds = thresholds.data_ptr(), len(thresholds)
    outputs = moments.data_ptr(), above.data_ptr(), histogram.data_ptr()
    module.block_moments(*_matrix(weight), _address(factors), power, *bounds, *outputs, *where)
    return moments, above, histogram


def kth_value(scores: Tensor, k: int, norm: Tensor | None = None) -> Tensor:
    values = _empty(scores, scores.shape[0])
    module, where = _on(scores)
    norm = _contiguous(norm)
    module.kth_value(*_matrix(scores), _address(norm), k, values.data_ptr(), *where)
    return values


def select_mask(scores: Tensor, k: int, norm: Tensor | None = None, bits: bool = False) -> Tensor:
    mask = empty_mask(scores, bits)
    module, where = _on(scores)
    norm = _contiguous(norm)
    module.select_mask(*_matrix(scores), _address(norm), k, bits, mask.data_ptr(), *where)
    return mask


def kth_value_global(matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None) -> Tensor:
    value = _empty(matrices[0], 1)
    module, where = _on(matrices[0])
    blocks, _norms = _blocks(matrices, norms, None)
    scratch = _global_scratch(matrices)
    module.kth_value_global(blocks, _dtype(matrices[0]), k, value.data_ptr(), *map(_address, scratch), *where)
    return value


def select_mask_global(
    matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None, bits: bool = False
) -> list[Tensor]:
    masks = [empty_mask(matrix, bits) for matrix in matrices]
    module, where = _on(matrices[0])
    blocks, _norms = _blocks(matrices, norms, masks)
    scratch = _global_scratch(matrices)
    module.select_mask_global(blocks, _dtype(matrices[0]), k, bits, *map(_address, scratch), *where)
    return masks


def _global_scratch(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return the scratch memory that the CUDA side needs; the CPU side allocates its own."""
    if not matrices[0].is_cuda:
        return []
    size = _module().cuda.global_scratch_bytes(len(matrices))
    return [torch.empty(size, dtype=torch.uint8, device=matrices[0].device)]


def _blocks(
    matrices: Sequence[Tensor], norms: Sequence[Tensor] | None, masks: Sequence[Tensor] | None
) -> tuple[list[tuple[int, ...]], list[Tensor] | None]:
    """Return (data, stride, rows, columns, norm, mask) per matrix, and the tensors that must outlive the call."""
    norms = None if norms is None else [norm.contiguous() for norm in norms]
    return [
        (m.data_ptr(), m.stride(0), *m.shape, norms[i].data_ptr() if norms else 0, masks[i].data_ptr() if masks else 0)
        for i, m in enumerate(matrices)
    ], norms


def empty_mask(scores: Tensor, bits: bool) -> Tensor:
    """Return an empty mask for ``scores``: bool ``[R, C]``, or packed uint8 ``[R, ceil(C / 8)]``."""
    if bits:
        return torch.empty(scores.shape[0], (scores.shape[1] + 7) // 8, dtype=torch.uint8, device=scores.device)
    return torch.empty(scores.shape, dtype=torch.bool, device=scores.device)


def nm_mask(scores: Tensor, n: int, m: int, norm: Tensor | None = None) -> Tensor:
    mask = empty_mask(scores, bits=False)
    module, where = _on(scores)
    norm = _contiguous(norm)
    module.nm_mask(*_matrix(scores), _address(norm), n, m, mask.data_ptr(), *where)
    return mask


def nm_apply(weight: Tensor, n: int, m: int, norm: Tensor | None, out: Tensor) -> None:
    module, where = _on(weight)
    norm = _contiguous(norm)
    module.nm_apply(*_matrix(weight), _address(norm), n, m, out.data_ptr(), *where)


def quantile_codes(scores: Tensor, norm: Tensor | None = None) -> Tensor:
    codes = torch.empty(scores.shape, dtype=torch.uint8, device=scores.device)
    module, where = _on(scores)
    norm = _contiguous(norm)
    module.quantile_codes(*_matrix(scores), _address(norm), codes.data_ptr(), *where)
    return codes


def masked_copy(weight: Tensor, codes: Tensor, level: int, out: Tensor) -> None:
    module, where = _on(weight)
    inputs = weight.data_ptr(), weight.stride(0), weight.element_size(), *weight.shape
    outputs = out.data_ptr(), out.stride(0)
    module.masked_copy(*inputs, codes.data_ptr(), codes.stride(0), level, *outputs, *where)


def gather_rows(weight: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = torch.empty(index.numel(), *weight.shape[1:], dtype=weight.dtype, device=weight.device)
    index = index.contiguous()
    _gather([_part(weight, index, 0, out.data_ptr(), out.stride(0))], weight)
    return out


def gather_columns(weight: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = torch.empty(weight.shape[0], index.numel(), dtype=weight.dtype, device=weight.device)
    index = index.contiguous()
    _gather([_part(weight, index, 1, out.data_ptr(), out.stride(0))], weight)
    return out


def compact_layer(
    weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int], offsets: Sequence[int], arena: Tensor
) -> None:
    indices = [index.contiguous() for index in indices]
    parts = []
    for weight, index, axis, offset in zip(weights, indices, axes, offsets, strict=True):
        row_stride = index.numel() if axis == 1 else weight[:1].numel()
        parts.append(_part(weight, index, axis, arena.data_ptr() + offset, row_stride))
    _gather(parts, arena)


def _part(weight: Tensor, index: Tensor, axis: int, out: int, out_stride: int) -> tuple[int, ...]:
    """Return (data, stride, element bytes, axis, other, bound, index, kept, out, out stride).

    ``bound`` is the length of the axis that the index runs over, ``other`` that of the axis that stays whole.
    """
    table = weight if weight.dim() == 2 else weight[:, None]
    data = table.data_ptr(), table.stride(0), table.element_size()
    return *data, axis, table.shape[1 - axis], table.shape[axis], index.data_ptr(), index.numel(), out, out_stride


def _gather(parts: Sequence[tuple[int, ...]], beside: Tensor) -> None:
    module, where = _on(beside)
    module.gather(parts, *where)
