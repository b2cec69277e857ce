"""Pruning of a second real model, of another architecture: ``python -m benchmarks.export.second_model --data DIR``.

Prunes Gemma 3 270M by 20% with several methods, or zeros half of its single weights, and measures its perplexity on
WikiText-2's test text. Its family gemma3_text has norms of queries and keys, norms behind attention and MLP, sliding
and full layers, and one key-value head; :mod:`benchmarks.export.gemma3` says where it comes from. ``--model`` takes
another model by the same protocol. Calibration is on samples of 128 tokens of C4. If the tokenizer starts a text with a
BOS token, every window of calibration and evaluation starts with it; the dense model is also measured on windows
without it. The results go to ``benchmarks/results/second_model.csv``, line by line.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pruneengine
from benchmarks.common.options import settle_texts
from benchmarks.export.gemma3 import gemma3
from pruneengine.bench.environment import RESULTS, ROOT, versions
from pruneengine.bench.record import Setting, record
from pruneengine.common.progress import set_progress
from pruneengine.evaluation.perplexity import PerplexityResult, model_size, paired_difference

STRUCTURED, SPARSE = ("param_first", "wanda", "magnitude_l1"), ("wanda", "magnitude")
RATIO, SPARSITY = 0.2, 0.5


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    try:
        source = options.model or gemma3(options.cache)
        model, tokenizer = pruneengine.load(source)
        measure(model, tokenizer, Path(source).name, options)
    except (ValueError, OSError) as error:
        sys.exit(f"second_model: {error}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with c4/c4_demo.jsonl and wikitext2/test_docs.jsonl")
    parser.add_argument("--model", help="folder, GGUF file or hub name (default: Gemma 3 270M)")
    parser.add_argument("--nsamples", type=int, default=32, help="calibration samples of 128 tokens")
    parser.add_argument("--window", type=int, default=512, help="tokens a window of the perplexity")
    parser.add_argument("--windows", type=int, default=16, help="how many, from the start of the text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "second_model", help="folder of the GGUF file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    parser.set_defaults(calibration=None, evaluation=None)
    return settle_texts(parser.parse_args())


def measure(model: nn.Module, tokenizer: Any, name: str, options: argparse.Namespace) -> None:
    """Dense, then every pruned model: a line each, on the terminal and in the results."""
    bos = tokenizer.bos_token_id
    starts = bos is not None and tokenizer("a")["input_ids"][0] == bos
    length = options.window - starts
    plain = pruneengine.evaluation_windows(options.evaluation, tokenizer, length, options.windows).tokens
    samples = pruneengine.load_samples(options.calibration, tokenizer, options.nsamples, 128 - starts).tokens
    windows = started(plain, bos) if starts else plain
    setting = Setting.here("second_model", options.threads)
    case = (
        f"{name}, {len(samples)} x 128 tokens of {Path(options.calibration).name}, first {len(windows)} windows of "
        f"{windows.shape[1]} tokens of {Path(options.evaluation).name}"
    )

    def keep(provider: str, found: PerplexityResult, values: dict[str, tuple[str, float]]) -> None:
        values = {"perplexity": ("", found.perplexity)} | values
        print(f"{provider}: " + ", ".join(f"{key} {value:,.4g}" for key, (_, value) in values.items()), flush=True)
        used = versions("torch", "transformers")
        record(
            [setting.row(case, provider, key, unit, [v], used) for key, (unit, v) in values.items()], options.results
        )

    dense = pruneengine.perplexity(model, windows, batch_size=1)
    keep("dense", dense, {"parameters": ("", float(model_size(model).parameters))})
    for provider, pruned, kept in prunings(model, started(samples, bos) if starts else samples):
        found = pruneengine.perplexity(pruned, windows, batch_size=1)
        difference = paired_difference(dense, found)
        loss = {"loss added": ("nats", difference.mean), "its standard error": ("nats", difference.standard_error)}
        keep(provider, found, kept | loss)
    if starts:
        keep("dense, windows without BOS", pruneengine.perplexity(model, plain, batch_size=1), {})


def started(tokens: Tensor, bos: int) -> Tensor:
    """A BOS token before every row."""
    return torch.cat([torch.full((len(tokens), 1), bos), tokens], 1)


def prunings(dense: nn.Module, samples: Tensor) -> Iterator[tuple[str, nn.Module, dict[str, tuple[str, float]]]]:
    """Name, pruned copy and how much it kept; one at a time is held."""
    configs = [pruneengine.PruneConfig(method=method, ratio=RATIO) for method in STRUCTURED]
    statistics = pruneengine.calibrate(dense, samples, frozenset().union(*(config.needs for config in configs)))
    for config in configs:
        model = copy.deepcopy(dense)
        report = pruneengine.prune(model, config=config, statistics=statistics if config.needs else None)
        kept = {
            "removed of heads and MLP": ("share", report.plan.reached),
            "parameters": ("", float(model_size(model).parameters)),
        }
        yield f"{config.method} {RATIO:.0%}", model, kept
    del statistics
    for method in SPARSE:
        model = copy.deepcopy(dense)
        config = pruneengine.SparseConfig(method=method, sparsity=SPARSITY)
        plan = pruneengine.sparsify(model, samples if method == "wanda" else None, config).plan
        yield f"{method}, {SPARSITY:.0%} of the weights", model, {"zeros": ("share", plan.reached)}


if __name__ == "__main__":
    main()
