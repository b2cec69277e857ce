"""Command-line options that the quality studies share: texts, model and folders; and the setting of a result."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pruneengine
from benchmarks.common.models import smollm2
from pruneengine.bench.environment import RESULTS, ROOT, cpu_name, versions

MODEL = "SmolLM2-135M-Instruct"
# By the option that names a text: its file in the folder of --data, and the hub's data set where there is no folder.
TEXTS = {
    "calibration": ("c4/c4_demo.jsonl", "c4"),
    "search": ("wikitext2/validation_docs.jsonl", "wikitext2"),
    "evaluation": ("wikitext2/test_docs.jsonl", "wikitext2"),
}


def study_parser(description: str | None, folder: str, **texts: str) -> argparse.ArgumentParser:
    """A parser with ``--data``, an option for each text that is read, and ``--model``.

    Args:
        description: of the script.
        folder: what the folder of ``--data`` holds.
        texts: names of :data:`TEXTS`, and what each is of; the options stand in this order.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"folder with {folder}")
    for name, purpose in texts.items():
        parser.add_argument(f"--{name}", help=f"{purpose} (default: of DATA, else {TEXTS[name][1]} from the hub)")
    parser.add_argument("--model", help=f"folder, GGUF file or hub name (default: {MODEL})")
    return parser


def add_places(parser: argparse.ArgumentParser, study: str, *, work: str, results: str, cells: str = "cells") -> None:
    """``--threads``, the study's two folders, and ``--list``.

    Args:
        parser: gains the options.
        study: the folder's name in the cache.
        work: the option of that folder, "--cache" of cells or "--work" of studies.
        results: what goes to the folder of results.
        cells: what is measured, one by one.
    """
    kept = "cells" if work == "--cache" else "studies"
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument(work, type=Path, default=ROOT / ".cache" / study, help=f"folder of the {kept}")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of the {results}")
    parser.add_argument("--list", action="store_true", help=f"print the missing {cells} and stop")


def check_least(parser: argparse.ArgumentParser, options: argparse.Namespace, least: int, *names: str) -> None:
    """Stop with the parser's message where one of the named options is less than it may be."""
    for name in names:
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")


def settle_texts(options: argparse.Namespace) -> argparse.Namespace:
    """The same options, with a text wherever none was named: of the folder of ``--data``, else from the hub."""
    for name, (file, hub) in TEXTS.items():
        if name in options and not getattr(options, name):
            setattr(options, name, str(options.data / file) if options.data else hub)
    return options


def check_texts(options: argparse.Namespace) -> None:
    """Raise ValueError for a text that does not exist, before a model is loaded."""
    for name in TEXTS:
        if name in options:
            pruneengine.data.windows.check_spec(getattr(options, name), None, default=1)


def load_model(options: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The model that is named, or SmolLM2, and its tokenizer."""
    return pruneengine.load(options.model) if options.model else smollm2()


def model_name(options: argparse.Namespace) -> str:
    """The model without the place where it lies."""
    return Path(options.model).name if options.model else MODEL


def load_seeds(options: argparse.Namespace, model: nn.Module, tokenizer: Any, count: int) -> dict[int, Any]:
    """``count`` samples of the calibration text for every seed."""
    return {
        seed: pruneengine.load_samples(options.calibration, tokenizer, count, options.seqlen, seed, model=model)
        for seed in options.seeds
    }


def setting_of(options: argparse.Namespace, *packages: str) -> dict[str, str]:
    """Where, with what and when: the columns that every line of a study's CSV ends with."""
    return {
        "device": cpu_name(),
        "threads": str(options.threads),
        "versions": versions(*packages),
        "date": date.today().isoformat(),
    }
