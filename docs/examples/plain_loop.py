"""The ops in a plain PyTorch loop: Wanda (Sun et al. 2024) for the linear layers of any model, in forty lines.

Nothing of pruneengine but ``pruneengine.ops`` is used. ``python docs/examples/plain_loop.py`` prunes a small network.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pruneengine import ops


class InputNorms:
    """The L2 norm of every input channel of every linear layer, over all tokens that pass through the model."""

    def __init__(self, model: nn.Module) -> None:
        self.squares: dict[nn.Linear, Tensor] = {}
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.hooks = [linear.register_forward_pre_hook(self.add) for linear in linears]

    def add(self, linear: nn.Linear, args: tuple[Tensor, ...]) -> None:
        x = args[0].reshape(1, -1, linear.in_features)
        _, squares, _ = ops.activation_stats(x)  # sum, sum of squares, largest magnitude: one read
        self.squares[linear] = self.squares.get(linear, 0) + squares[0]

    def close(self) -> dict[nn.Linear, Tensor]:
        for hook in self.hooks:
            hook.remove()
        return {linear: squares.sqrt() for linear, squares in self.squares.items()}


@torch.no_grad()
def wanda(model: nn.Module, batches: Iterable[Tensor], sparsity: float = 0.5, pattern: str | None = None) -> None:
    """Zero the fraction ``sparsity`` of every row, or what an n:m ``pattern`` such as "2:4" asks for, in place."""
    norms = InputNorms(model)
    for batch in batches:
        model(batch)
    for linear, norm in norms.close().items():
        weight = linear.weight
        if pattern is not None:
            n, m = map(int, pattern.split(":"))
            weight.copy_(ops.nm_apply(weight, n, m, norm))  # |W| * norm is never written anywhere
        else:
            weight.masked_fill_(ops.select_mask(weight, int(weight.shape[1] * sparsity), norm), 0)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
    batches = [torch.randn(8, 32, 256) for _ in range(4)]
    before = model(batches[0])
    for pattern in (None, "2:4"):
        pruned = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
        pruned.load_state_dict(model.state_dict())
        wanda(pruned, batches, 0.5, pattern)
        zeros = [float((p == 0).float().mean()) for name, p in pruned.named_parameters() if name.endswith("weight")]
        error = float((pruned(batches[0]) - before).norm() / before.norm())
        print(f"{pattern or 'unstructured'}: zeros {zeros[0]:.3f}, {zeros[1]:.3f}; relative output error {error:.3f}")


if __name__ == "__main__":
    main()
