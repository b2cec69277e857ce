"""Magnitude pruning of a quarter of the MLP channels of SmolLM2-135M, against optipfair and torch-pruning.

Every provider has a process of its own that stays alive, the peers in ``benchmarks/.venv-peers``; they prune fresh
copies of one dense model in turn. The peers rank channels by other formulas of the same weights (optipfair's MAW: the
range of a row of gate and up), but all remove the same number of channels: the work is the same, the choice is not.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import pruneengine
from benchmarks.common.models import smollm2
from benchmarks.common.worker import Worker, interpreter, make_environment
from benchmarks.speed.compare import Target
from pruneengine.bench.environment import ROOT
from pruneengine.bench.record import GateError, Row, Setting
from pruneengine.bench.timing import interleave
from pruneengine.structured.prune import decide

BASE = "pruneengine-l1"
TARGETS = (
    Target("prune", "pruneengine-l1", "optipfair-maw", 1 / 4),
    Target("prune", "pruneengine-l2", "optipfair-l2", 1 / 4),
    Target("prune", "pruneengine-l2", "torch-pruning-l2", 1 / 10),
)
CASE = "SmolLM2-135M mlp 25%"
FOLDER = ROOT / "benchmarks" / ".venv-peers"
PYTHON = interpreter(FOLDER)
PROVIDERS = {
    "pruneengine-l1": Path(sys.executable),
    "pruneengine-l2": Path(sys.executable),
    "optipfair-maw": PYTHON,
    "optipfair-l2": PYTHON,
    "torch-pruning-l2": PYTHON,
}


def setup() -> None:
    """Create the peers' environment anew."""
    make_environment(FOLDER, Path(__file__).with_name("requirements-peers.txt"), ROOT / "constraints.txt")


def measure(rounds: int, threads: int) -> list[Row]:
    """Gate, then rows of the seconds of every provider. Torch-pruning's graph and step are also rows of their own."""
    if not PYTHON.exists():
        raise FileNotFoundError(f"{PYTHON} is missing: run `python -m benchmarks.speed.run peers --setup` first")
    model, _ = smollm2()
    tokens = torch.randint(model.config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    check_masked(model, pruneengine.PruneConfig("magnitude_l1", 0.25, ("mlp",)), tokens)
    layers, setting = model.config.num_hidden_layers, Setting.here("peers", threads)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        workers: dict[str, Worker] = {}
        try:
            for name, python in PROVIDERS.items():
                workers[name] = worker(python, name, folder, threads)
            # The gate's round is the warm-up.
            check_equal({name: process.ask("go") for name, process in workers.items()}, width=1152, linears=3 * layers)
            timed = {name: lambda process=process: process.ask("go")["seconds"] for name, process in workers.items()}
            values = interleave(timed, rounds, warmup=0)
        finally:
            for process in workers.values():
                process.close()
    return [
        setting.row(CASE, name, quantity, "s", seconds, workers[name].versions)
        for name, measured in values.items()
        for quantity, seconds in measured.items()
    ]


def check_masked(model: nn.Module, config: pruneengine.PruneConfig, tokens: Tensor) -> None:
    """Removing what the plan removes gives the logits of masking it, int64 ``tokens [N, L]``; else GateError."""
    structure = pruneengine.find_groups(model)
    plan = decide(model, structure, None, config).plan
    pruned = copy.deepcopy(model)
    pruneengine.prune(pruned, config=config)
    with torch.no_grad():
        with pruneengine.mask(model, plan):
            expected = model(input_ids=tokens, use_cache=False).logits
        found = pruned(input_ids=tokens, use_cache=False).logits
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < 1e-4:
        raise GateError(f"logits of the pruned model differ from the masked model's by {error:.1e} of their largest")


def check_equal(outcomes: Mapping[str, Mapping], width: int, linears: int) -> None:
    """Every provider left ``width`` channels in each of ``linears`` linears and as many parameters as the others."""
    params = {name: outcome["params"] for name, outcome in outcomes.items()}
    for name, outcome in outcomes.items():
        if outcome["widths"] != [width] or outcome["linears"] != linears:
            raise GateError(
                f"{name} left widths {outcome['widths']} in {outcome['linears']} linears, expected {width} in {linears}"
            )
    if len(set(params.values())) != 1:
        raise GateError(f"the providers disagree on the parameters that are left: {params}")


def worker(python: Path, provider: str, folder: str, threads: int) -> Worker:
    """A provider's process; it answers every "go" with one prune of a fresh copy of the model in ``folder``."""
    return Worker(provider, [python, Path(__file__).with_name("peers_worker.py"), provider, folder, str(threads)])
