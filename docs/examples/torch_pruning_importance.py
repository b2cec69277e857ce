"""A Torch-Pruning ``Importance`` that scores with ``pruneengine.ops``: the ranking of its own, from fewer reads.

Torch-Pruning finds the groups and slices the layers; only the scoring changes hands. ``python
docs/examples/torch_pruning_importance.py`` compares both on a gated MLP and prunes it.
"""

from __future__ import annotations

import time
from statistics import median

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pruneengine import ops

LINEAR_AXIS = {tp.prune_linear_out_channels: 0, tp.prune_linear_in_channels: 1}


class FusedMagnitude(tp.importance.Importance):
    """Mean over the linear layers of a group of ``sum |W|^p`` per channel, divided by its mean over the channels.

    It equals ``tp.importance.GroupMagnitudeImportance(p, bias=False, target_types=[nn.Linear])``, without a copy, a
    transpose or a power of the weights.
    """

    def __init__(self, p: float = 2.0) -> None:
        self.p = p

    @torch.no_grad()
    def __call__(self, group: tp.Group) -> Tensor | None:
        members = [
            (ops.weight_scores(dependency.layer.weight, power=self.p)[LINEAR_AXIS[dependency.pruning_fn]], item)
            for item in group
            for dependency in [item.dep]
            if dependency.pruning_fn in LINEAR_AXIS
        ]
        if not members:
            return None
        total = torch.zeros(1 + max(max(item.root_idxs) for _, item in members), device=members[0][0].device)
        for scores, item in members:
            # Torch-Pruning may hold a part of a layer's channels, in an order of its own.
            channels, roots = (torch.tensor(i, device=scores.device) for i in (item.idxs, item.root_idxs))
            total.index_add_(0, roots, scores[channels])
        return total / total.mean()


class GatedMLP(nn.Module):
    """The MLP of a Llama layer."""

    def __init__(self, hidden: int = 576, width: int = 1536) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(hidden, width, bias=False), nn.Linear(hidden, width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def group_of(model: GatedMLP) -> tp.Group:
    """Return the MLP's channels: rows of gate and up, columns of down."""
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 4, model.gate.in_features))
    return graph.get_pruning_group(model.gate, tp.prune_linear_out_channels, list(range(model.gate.out_features)))


def main() -> None:
    torch.manual_seed(0)
    model = GatedMLP(1024, 4096)
    group = group_of(model)
    scorers = {
        "Torch-Pruning": tp.importance.GroupMagnitudeImportance(p=2, bias=False, target_types=[nn.Linear]),
        "pruneengine.ops": FusedMagnitude(p=2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(9):
        for name, scorer in scorers.items():
            start = time.perf_counter()
            scorer(group)
            seconds[name].append(time.perf_counter() - start)
    theirs, ours = (scorer(group) for scorer in scorers.values())
    print(f"largest difference: {float((ours / theirs - 1).abs().max()):.1e} of the score")
    for name, values in seconds.items():
        print(f"{name}: {1e3 * median(values):.1f} ms a group")

    pruner = tp.pruner.BasePruner(
        model, torch.randn(1, 4, 1024), FusedMagnitude(p=2), pruning_ratio=0.25, ignored_layers=[model.down],
        root_module_types=[nn.Linear],
    )  # fmt: skip
    pruner.step()
    print("width after pruning a quarter:", model.gate.out_features)


if __name__ == "__main__":
    main()
