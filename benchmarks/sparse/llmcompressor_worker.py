"""llm-compressor's Wanda in a process of its own: ``llmcompressor_worker.py MODEL_FOLDER TOKENS THREADS``.

Runs in ``benchmarks/.venv-llmcompressor``. TOKENS is a safetensors file with ``tokens`` int64 ``[N, T]``. The process
first writes its versions in one JSON line. It then answers every JSON line on its input, ``{"sparsity", "pattern",
"masks"}``, with one prune of the model as it is on disk: the seconds of the prune alone (tracing, calibration, masks)
and of the whole call (loading and the data besides). If ``masks`` names a file, the zeros of every linear are written
there, bool by path.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def prune(folder: Path, tokens: Tensor, sparsity: float, pattern: str) -> tuple[nn.Module, dict[str, float]]:
    """The pruned model, and the seconds that it took by quantity."""
    from datasets import Dataset
    from llmcompressor.entrypoints.oneshot import Oneshot
    from llmcompressor.modifiers.pruning import WandaPruningModifier

    class Timed(Oneshot):
        def apply_recipe_modifiers(self, *args, **options) -> None:
            start = time.perf_counter()
            super().apply_recipe_modifiers(*args, **options)
            seconds["prune"] = time.perf_counter() - start

    seconds: dict[str, float] = {}
    recipe = WandaPruningModifier(
        sparsity=sparsity, mask_structure="0:0" if pattern == "unstructured" else pattern,
        targets=["Linear"], ignore=["re:.*lm_head"],
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    start = time.perf_counter()
    run = Timed(
        model=str(folder), recipe=recipe, dataset=data, num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1], shuffle_calibration_samples=False,
    )  # fmt: skip
    run()
    seconds["prune and load"] = time.perf_counter() - start
    return run.model, seconds


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {
        path: module.weight.detach() == 0
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in path
    }


def main() -> None:
    folder, data, threads = sys.argv[1:]
    # Libraries print; standard output is for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    from safetensors.torch import load_file, save_file

    tokens = load_file(data)["tokens"]
    packages = ("torch", "transformers", "llmcompressor", "compressed-tensors")
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(json.dumps({"versions": " ".join([f"python {platform.python_version()}", *found])}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        model, seconds = prune(Path(folder), tokens, asked["sparsity"], asked["pattern"])
        if asked.get("masks"):
            save_file(zeros(model), asked["masks"])
        print(json.dumps({"seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()
