"""Views of a tensor's bits as integers."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element


def as_integers(tensor: Tensor) -> Tensor:
    """Return the same memory as signed integers of the same size: a view with the tensor's shape."""
    return tensor.view(_INTEGERS[tensor.element_size()])
