"""Writer of the files in this folder: run it with an earlier version of the package on the path.

Usage: ``python tests/formats/write.py FOLDER``. Existing files in FOLDER are replaced.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# Every file of a checkpoint but those that are for people.
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_pruned.py",
    "plan.json",
    "recipe.yaml",
    "report.json",
)
SIZES = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
TEXTS = {
    "text": "\n\n".join(f"Sentence {i} tells that {i * 7 % 13} and {i * 5 % 11} differ." for i in range(60)),
    "search": "\n\n".join(f"red green blue {i} {i * i % 97} {i * 31 % 53} eulb neerg der" for i in range(60)),
}
CALIBRATION = ("--calibration", "text.txt", "--nsamples", "3", "--seqlen", "16", "--eval-text", "none", "--no-proof")
SEARCHED = (
    "--calibration", "text.txt", "--eval", "search.txt", "--eval-text", "none", "--no-proof",
    "--seqlen", "24", "--finalists", "1",
)  # fmt: skip
TRAINED = (
    "--data", "text.txt", "--cutoff", "16", "--batch", "2", "--micro-batch", "2", "--max-steps", "2",
    "--eval-every", "1", "--val-rows", "2", "--eval-text", "none", "--no-proof",
)  # fmt: skip


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # Recipes and reports keep the paths as they were given; these are relative, so that they name no machine.
        os.chdir(scratch)
        write_model(Path("model"))
        for name, text in TEXTS.items():
            Path(f"{name}.txt").write_text(text)
        write_all(folder)


def write_all(folder: Path) -> None:
    statistics = folder / "statistics.safetensors"
    statistics.unlink(missing_ok=True)
    run("prune", "model", *CALIBRATION, "--method", "param_first", "--ratio", "0.3", "--statistics", "statistics",
        "--round-to", "1", "--out", "uniform")  # fmt: skip
    # The file gains what this metric reads.
    run("prune", "model", *CALIBRATION, "--method", "wanda", "--ratio", "0.3", "--statistics", "statistics",
        "--round-to", "1", "--dry-run")  # fmt: skip
    shutil.copy("statistics", statistics)
    run("prune", "model", *CALIBRATION, "--method", "magnitude_l2", "--ratio", "0.37", "--shape", "per-layer",
        "--allocation", "global", "--round-to", "1", "--out", "per-layer")  # fmt: skip
    for name in ("uniform", "per-layer"):
        copy_checkpoint(Path(name), folder / name)
    run("prune", "model", *CALIBRATION, "--method", "wanda", "--sparsity", "0.5", "--out", "sparse")
    run("recover", "per-layer", *TRAINED, "--out", "recovered")
    run("search", "model", *SEARCHED, "--ratio", "0.3", "--round-to", "1", "--pool", "4", "--counts", "2",
        "--lengths", "16", "--windows", "4", "--held-out", "2", "--trials", "2", "--out", "searched")  # fmt: skip
    run("search", "model", *SEARCHED, "--method", "dsa", "--sparsity", "0.5", "--nsamples", "3", "--windows", "4",
        "--trials", "2", "--correlate", "0", "--out", "dsa")  # fmt: skip
    for name in ("sparse", "recovered", "searched", "dsa"):
        for file in ("recipe.yaml", "report.json"):
            shutil.copy(Path(name) / file, folder / f"{name}-{file}")
    shutil.copy(Path("sparse") / "plan.json", folder / "sparse-plan.json")
    write_function(folder / "function.json")


def write_model(folder: Path) -> None:
    """Write a tiny random Llama with a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=len(tokenizer), **SIZES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(folder)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint without its tokenizer and pages, and write the logits that its model gives now."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in CHECKPOINT_FILES:
        if (source / name).exists():
            shutil.copy(source / name, target)
    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True, dtype="auto").eval()
    tokens = (torch.arange(10).reshape(1, 10) * 7919 + 11) % model.config.vocab_size
    with torch.inference_mode():
        save_file({"tokens": tokens, "logits": model(tokens).logits}, target / "logits.safetensors")


def write_function(file: Path) -> None:
    from pruneengine.sparse.functions.function import Function

    function = Function(pre=("abs", "log"), reduce="l1", transform="sigmoid", post="tanh", spread=0.2, sign=-1)
    function.save(file, {"model": "llama", "sparsity": 0.5, "pruner": "wanda", "loss": 0.25})


def run(*arguments: str) -> None:
    """Run the command line in this process."""
    from pruneengine import cli

    with mock.patch.object(sys, "argv", ["pruneengine", *arguments]):
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                raise


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
