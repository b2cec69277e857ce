"""Exported GGUF files in llama.cpp itself: ``python -m benchmarks.export.gguf_check --data DIR``.

Exports checkpoints, lets llama.cpp compute the logits of WikiText-2's test text and compares them with the checkpoints'
own logits. The checkpoints are SmolLM2-135M dense, pruned by 20% with equal widths and with per-layer widths, and small
random Qwen2 and Qwen3 models on random tokens; or the given folders. llama-cpp-python takes 5 to 10 minutes to compile
and may live in an environment of its own, whose interpreter the variable LLAMA_CPP_PYTHON names. Checkpoints stay in
``--work`` and are reused. The results go to ``benchmarks/results/gguf.csv``.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import pruneengine
from benchmarks.common.models import smollm2
from benchmarks.common.options import settle_texts
from benchmarks.export.gguf_distance import Distance, distance
from pruneengine.bench.environment import RESULTS, ROOT, versions
from pruneengine.bench.record import Setting, record
from pruneengine.checkpoint.load import load_model
from pruneengine.common.progress import set_progress
from pruneengine.data.sources import documents
from pruneengine.export import export
from pruneengine.export.gguf import llama_cpp
from tests.checkpoint.test_write import prune_by_hand
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_exports import byte_level_tokenizer

# ggml multiplies rows in blocks of 32.
SMALL = {
    "hidden_size": 64,
    "head_dim": 16,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
PER_LAYER = {"shape": "per-layer", "allocation": "global"}
# Half precision of weights and activations moves a distribution by far less.
ALLOWED_DIVERGENCE = 1e-3


@dataclass(frozen=True)
class Case:
    """A checkpoint to export: its name, what makes its folder, and whether it reads text or random tokens."""

    name: str
    make: Callable[[Path], Path]
    text: bool = True

    def folder(self, work: Path) -> Path:
        made = work / self.name.replace(" ", "-").replace("%", "")
        return made if (made / "config.json").is_file() else self.make(made)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    if reason := llama_cpp.missing():
        sys.exit(f"gguf_check: {reason}")
    found: dict[str, Distance] = {}
    try:
        for case in cases(options):
            found[case.name] = measure(case, options)
            print(f"{case.name}: {found[case.name]}", flush=True)
    except (ValueError, OSError, pruneengine.checkpoint.reload_proof.ReloadError) as error:
        sys.exit(f"gguf_check: {error}")
    write(found, options)
    if wrong := [name for name, one in found.items() if not one.divergence <= ALLOWED_DIVERGENCE]:
        sys.exit(f"gguf_check: llama.cpp computes something else for {', '.join(wrong)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, help="folders to check instead of those named above")
    parser.add_argument("--data", type=Path, help="folder with wikitext2/test_docs.jsonl and c4/c4_demo.jsonl")
    parser.add_argument("--window", type=int, default=512, help="tokens a window")
    parser.add_argument("--windows", type=int, default=8, help="how many, from the start of the text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of llama.cpp")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "gguf_check", help="folder of the checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    parser.set_defaults(calibration=None, evaluation=None)
    return settle_texts(parser.parse_args())


def cases(options: argparse.Namespace) -> list[Case]:
    if options.checkpoints:
        return [Case(path.name, lambda _, path=path: path) for path in options.checkpoints]
    return [
        Case("SmolLM2-135M dense", lambda folder: pruneengine.save(*smollm2(), folder).path),
        Case("SmolLM2-135M 20% equal widths", lambda folder: pruned(folder, options)),
        Case("SmolLM2-135M 20% per layer", lambda folder: pruned(folder, options, **PER_LAYER)),
        Case("Qwen2 random", lambda folder: random_model(folder, "qwen2-biases"), text=False),
        Case("Qwen2 random per layer", lambda folder: random_model(folder, "qwen2-biases", (4, 2, 3)), text=False),
        Case("Qwen3 random", lambda folder: random_model(folder, "qwen3-norms"), text=False),
    ]


def pruned(folder: Path, options: argparse.Namespace, **how: str) -> Path:
    """SmolLM2-135M less 20% by param_first, calibrated once for all plans."""
    model, tokenizer = copy.deepcopy(smollm2()[0]), smollm2()[1]
    config = pruneengine.PruneConfig(method="param_first", ratio=0.2, **how)
    held = options.work / "statistics.safetensors"
    if not held.exists():
        samples = pruneengine.load_samples(options.calibration, tokenizer, 8, 128)
        pruneengine.calibrate(model, samples, config.needs).save(held)
    report = pruneengine.prune(model, config=config, statistics=pruneengine.Statistics.load(held))
    return pruneengine.save(model, tokenizer, folder, plan=report.plan).path


def random_model(folder: Path, variant: str, heads: tuple[int, ...] = (4, 4, 4)) -> Path:
    widths = [(count, 32 * count) for count in heads]
    model = prune_by_hand(tiny_model(variant, **SMALL), widths)
    return pruneengine.save(model, byte_level_tokenizer(), folder).path


def measure(case: Case, options: argparse.Namespace) -> Distance:
    """Export, run both, compare; the export's own proof comes first."""
    source = case.folder(options.work)
    made = export(source, options.work / f"{source.name}-gguf", overwrite=True)
    model, tokenizer = load_model(source)
    (file,) = made.path.glob("*.gguf")
    if not case.text:
        generator = torch.Generator().manual_seed(0)
        return distance(model, file, torch.randint(model.config.vocab_size, (options.windows, 64), generator=generator))
    windows = pruneengine.evaluation_windows(options.evaluation, tokenizer, options.window, options.windows)
    same_words(file, tokenizer, options)
    return distance(model, file, windows.tokens)


def same_words(file: Path, tokenizer: object, options: argparse.Namespace) -> None:
    """ValueError if llama.cpp cuts the text that is measured into other tokens."""
    text = "\n\n".join(documents(options.evaluation, "evaluation"))[: 6 * options.windows * options.window]
    ours: list[int] = tokenizer(text, verbose=False)["input_ids"]
    theirs = llama_cpp.token_ids(file, text)
    if ours != theirs:
        at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
        raise ValueError(f"{file.name}: token {at} is {theirs[at : at + 3]} in llama.cpp, {ours[at : at + 3]} here")
    print(f"{file.name}: {len(ours):,} tokens of text, the same in llama.cpp")


def write(found: dict[str, Distance], options: argparse.Namespace) -> None:
    setting = Setting.here("gguf", options.threads)
    used = f"{versions('torch', 'transformers', 'gguf')} {llama_cpp.PACKAGE} {llama_cpp.version()}"
    rows = [
        setting.row(name, provider, quantity, unit, [value], used)
        for name, one in found.items()
        for provider, quantity, unit, value in one.values()
    ]
    record(rows, options.results)


if __name__ == "__main__":
    main()
