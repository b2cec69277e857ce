"""One provider in a process of its own: ``peers_worker.py PROVIDER MODEL_FOLDER THREADS``.

Runs in either environment. The process first writes its versions in one JSON line. It then answers every line on its
input with one prune of a fresh copy of the dense model: the seconds (without the copy) and the pruned model's widths
and parameters.
"""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

RATIO = 0.25


def by_pruneengine(method: str) -> Callable[[nn.Module], dict[str, float]]:
    import pruneengine

    config = pruneengine.PruneConfig(method=method, structure=("mlp",), ratio=RATIO)

    def prune(model: nn.Module) -> dict[str, float]:
        start = time.perf_counter()
        pruneengine.prune(model, config=config)
        return {"prune": time.perf_counter() - start}

    return prune


def by_optipfair(method: str) -> Callable[[nn.Module], dict[str, float]]:
    import optipfair

    def prune(model: nn.Module) -> dict[str, float]:
        start = time.perf_counter()
        optipfair.prune_model(
            model=model, pruning_type="MLP_GLU", neuron_selection_method=method, pruning_percentage=100 * RATIO,
            show_progress=False,
        )  # fmt: skip
        return {"prune": time.perf_counter() - start}

    return prune


def by_torch_pruning(p: str) -> Callable[[nn.Module], dict[str, float]]:
    import torch_pruning

    def prune(model: nn.Module) -> dict[str, float]:
        model.config.use_cache = False
        # Only the channels between gate_proj, up_proj and down_proj are roots; what else a channel touches follows.
        roots = ("gate_proj", "up_proj")
        ignored = [m for n, m in model.named_modules() if not list(m.children()) and not n.endswith(roots)]
        start = time.perf_counter()
        pruner = torch_pruning.pruner.BasePruner(
            model, example_inputs=torch.ones(1, 8, dtype=torch.int64),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=int(p)), pruning_ratio=RATIO,
            ignored_layers=ignored, output_transform=lambda out: out.logits,
        )  # fmt: skip
        traced = time.perf_counter()
        pruner.step()
        end = time.perf_counter()
        return {"graph": traced - start, "step": end - traced, "prune": end - start}

    return prune


# provider: (distribution, what makes its prune function, argument)
PROVIDERS = {
    "pruneengine-l1": ("pruneengine", by_pruneengine, "magnitude_l1"),
    "pruneengine-l2": ("pruneengine", by_pruneengine, "magnitude_l2"),
    "optipfair-maw": ("optipfair", by_optipfair, "MAW"),
    "optipfair-l2": ("optipfair", by_optipfair, "L2"),
    "torch-pruning-l2": ("torch-pruning", by_torch_pruning, "2"),
}


def outcome(model: nn.Module) -> dict[str, object]:
    """The MLP widths that the weights really have, and the number of parameters."""
    widths = [m.weight.shape[0] for n, m in model.named_modules() if n.endswith(("gate_proj", "up_proj"))]
    widths += [m.weight.shape[1] for n, m in model.named_modules() if n.endswith("down_proj")]
    return {"widths": sorted(set(widths)), "linears": len(widths), "params": sum(p.numel() for p in model.parameters())}


def main() -> None:
    provider, folder, threads = sys.argv[1:]
    # Libraries print; standard output is for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(threads))
    distribution, make, argument = PROVIDERS[provider]
    prune = make(argument)
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    packages = dict.fromkeys(("torch", "transformers", distribution))
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(json.dumps({"versions": " ".join([f"python {platform.python_version()}", *found])}), file=answers)
    for _ in sys.stdin:
        model = copy.deepcopy(dense)
        gc.collect()
        seconds = prune(model)
        print(json.dumps({"seconds": seconds} | outcome(model)), file=answers)


if __name__ == "__main__":
    main()
