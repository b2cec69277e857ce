"""Magnitude pruning of a quarter of the MLP channels of SmolLM2-135M, against optipfair and torch-pruning.

Every provider has a process of its own that stays alive, the peers in ``benchmarks/.venv-peers``; they prune fresh
copies of one dense model in turn. The peers rank channels by other formulas of the same weights (optipfair's MAW: the
range of a row of gate and up), but all remove the same number of channels: the work is the same, the choice is not.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import pruneengine
from benchmarks.compare import Target
from benchmarks.models import smollm2
from pruneengine.bench.here import ROOT
from pruneengine.bench.record import GateError, Row, Setting, interleave
from pruneengine.engine import decide

BASE = "pruneengine-l1"
TARGETS = (
    Target("prune", "pruneengine-l1", "optipfair-maw", 1 / 4),
    Target("prune", "pruneengine-l2", "optipfair-l2", 1 / 4),
    Target("prune", "pruneengine-l2", "torch-pruning-l2", 1 / 10),
)
CASE = "SmolLM2-135M mlp 25%"
FOLDER = ROOT / "benchmarks" / ".venv-peers"
PYTHON = FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
PROVIDERS = {
    "pruneengine-l1": Path(sys.executable),
    "pruneengine-l2": Path(sys.executable),
    "optipfair-maw": PYTHON,
    "optipfair-l2": PYTHON,
    "torch-pruning-l2": PYTHON,
}


def setup() -> None:
    """Create the peers' environment anew: torch first, so that no peer can pull in another one."""
    venv.create(FOLDER, clear=True, symlinks=sys.platform != "win32", with_pip=True)
    pip = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    for what in (["torch"], ["-r", ROOT / "benchmarks" / "requirements-peers.txt"]):
        subprocess.run([*pip, *what], check=True)


def measure(rounds: int, threads: int) -> list[Row]:
    """Gate, then rows of the seconds of every provider. Torch-pruning's graph and step are also rows of their own."""
    if not PYTHON.exists():
        raise FileNotFoundError(f"{PYTHON} is missing: run `python benchmarks/run.py peers --setup` first")
    model, _ = smollm2()
    tokens = torch.randint(model.config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    check_masked(model, pruneengine.PruneConfig("magnitude_l1", 0.25, ("mlp",)), tokens)
    layers, setting = model.config.num_hidden_layers, Setting.here("peers", threads)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        workers: dict[str, Worker] = {}
        try:
            for name, python in PROVIDERS.items():
                workers[name] = Worker(python, name, folder, threads)
            # The gate's round is the warm-up.
            check_equal({name: worker.prune() for name, worker in workers.items()}, width=1152, linears=3 * layers)
            timed = {name: lambda worker=worker: worker.prune()["seconds"] for name, worker in workers.items()}
            values = interleave(timed, rounds, warmup=0)
        finally:
            for worker in workers.values():
                worker.close()
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


class Worker:
    """A provider's process; see :mod:`benchmarks.peers_worker`."""

    def __init__(self, python: Path, provider: str, folder: str, threads: int):
        self.provider = provider
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        command = [python, Path(__file__).with_name("peers_worker.py"), provider, folder, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.versions: str = self._answer()["versions"]

    def prune(self) -> dict:
        """One prune of a fresh copy: ``seconds`` by quantity, ``widths``, ``linears`` and ``params``."""
        print("go", file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self.provider} ended: {self._errors.read().strip().splitlines()[-1:]}")
        return json.loads(line)
