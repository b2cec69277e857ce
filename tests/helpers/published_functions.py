"""The operations of DSA's authors on one float32 vector, from their description, with torch's own functions."""

import math

import torch

from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.functions.names import POST

PUBLISHED_PRE = {
    "no": lambda x: x,
    "abs": torch.abs,
    "log": lambda x: torch.log(x.where(x > 0, torch.ones_like(x)) + 1e-6),
    "abslog": lambda x: x.where(x != 0, torch.ones_like(x)).abs().log(),
    "square": torch.square,
    "exp": torch.exp,
    "normalize": lambda x: ((x - x.mean()) / x.std()).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "minmax": lambda x: (x - x.min()) / (x.max() - x.min() + 1e-9),
}


def entropy(x):
    p = x[x >= 0]
    return torch.distributions.Categorical(probs=p / p.sum(), validate_args=False).entropy()


PUBLISHED_REDUCE = {
    "no": torch.mean,
    "mean": torch.mean,
    "var": torch.var,
    "std": torch.std,
    "l1": lambda x: x.abs().mean(),
    "frobenius": lambda x: torch.linalg.vector_norm(x),
    "geometric": lambda x: x.prod().pow(1 / x.numel()),
    "entropy": entropy,
}
PUBLISHED_POST = {
    **{name: getattr(torch, name) for name in POST if name not in ("no", "softplus")},
    "no": lambda v: v,
    "softplus": torch.nn.functional.softplus,
}


def published(x: torch.Tensor, function: Function) -> float:
    """Compute as the authors do on one vector, literally: float32 throughout, then their last rule."""
    for name in function.pre:
        x = PUBLISHED_PRE[name](x)
    x = x if function.reduce == "no" else PUBLISHED_REDUCE[function.reduce](x)
    for name in (function.transform, function.post):
        x = PUBLISHED_POST[name](x)
    value = float(x.mean())
    return 0.0 if math.isnan(value) else -1.0 if math.isinf(value) else value
