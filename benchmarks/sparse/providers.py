"""Providers of :mod:`benchmarks.sparse.peers`: each prunes the same dense model sparsely behind one call."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pruneengine
from benchmarks.common.worker import Worker, interpreter, make_environment
from benchmarks.sparse.naive import Hessian, RowNorms, naive_sparsify
from pruneengine.bench.environment import ROOT, versions

OURS, TWO_PASS, LOOP, COMPRESSOR = "pruneengine", "pruneengine two-pass", "published loop", "llm-compressor"
FOLDER = ROOT / "benchmarks" / ".venv-llmcompressor"
PYTHON = interpreter(FOLDER)
PRUNE, LOADED = "prune", "prune and load"


@dataclass(frozen=True)
class Work:
    """What is asked of everyone.

    Attributes:
        method: "wanda" or "sparsegpt".
        pattern: "unstructured" or "N:M", N of M kept.
        faster: how many times faster than this peer pruneengine promises to be.
        sparsity: of every matrix.
    """

    method: str
    pattern: str
    faster: Mapping[str, float]
    sparsity: float = 0.5

    @property
    def group(self) -> tuple[int, int] | None:
        return None if self.pattern == "unstructured" else tuple(map(int, self.pattern.split(":")))


@dataclass(frozen=True)
class Outcome:
    """What a prune took and left.

    Attributes:
        seconds: by quantity.
        removed: bool ``[R, C]`` by path of the linear, where it was asked for.
        statistics: of the published loop, by path.
    """

    seconds: dict[str, float]
    removed: dict[str, Tensor] | None = None
    statistics: dict[str, Any] | None = None


def setup() -> None:
    """Create llm-compressor's environment anew."""
    make_environment(FOLDER, Path(__file__).with_name("requirements-llmcompressor.txt"))


@dataclass(frozen=True)
class Task:
    """The dense model, also as a folder on disk, and the calibration tokens (int64 ``[N, T]``)."""

    model: nn.Module
    folder: Path
    tokens: Tensor
    batch_size: int
    threads: int


class Engine:
    """pruneengine in one of its modes."""

    versions = versions("torch", "transformers")

    def __init__(self, task: Task, mode: str) -> None:
        self.task, self.mode = task, mode

    def prune(self, work: Work, masks: bool = False) -> Outcome:
        config = pruneengine.SparseConfig(
            method=work.method, sparsity=work.sparsity, pattern=work.pattern, mode=self.mode,
            batch_size=self.task.batch_size,
        )  # fmt: skip
        start = time.perf_counter()
        pruneengine.load(self.task.folder)
        loading = time.perf_counter() - start
        model = copy.deepcopy(self.task.model)
        start = time.perf_counter()
        pruneengine.sparsify(model, self.task.tokens.split(self.task.batch_size), config)
        seconds = time.perf_counter() - start
        return Outcome({PRUNE: seconds, LOADED: seconds + loading}, zeros(model) if masks else None)


class PublishedLoop:
    """What the scripts of Wanda and SparseGPT do; see :mod:`benchmarks.sparse.naive`."""

    versions = versions("torch", "transformers")

    def __init__(self, task: Task) -> None:
        self.task = task

    def prune(self, work: Work, masks: bool = False) -> Outcome:
        statistic = {"wanda": RowNorms, "sparsegpt": Hessian}[work.method]
        model = copy.deepcopy(self.task.model)
        start = time.perf_counter()
        statistics = naive_sparsify(model, self.task.tokens, statistic, work.sparsity, work.group)
        seconds = {PRUNE: time.perf_counter() - start}
        return Outcome(seconds, zeros(model), statistics) if masks else Outcome(seconds)


class Compressor:
    """llm-compressor's Wanda, in its own process and environment."""

    def __init__(self, task: Task) -> None:
        from safetensors.torch import save_file

        if not PYTHON.exists():
            raise FileNotFoundError(f"{FOLDER.name} is missing: run `python -m benchmarks.sparse.peers --setup`")
        tokens = task.folder / "calibration.safetensors"
        save_file({"tokens": task.tokens.contiguous()}, tokens)
        script = Path(__file__).with_name("llmcompressor_worker.py")
        self._masks = task.folder / "masks.safetensors"
        self._worker = Worker(COMPRESSOR, [PYTHON, script, task.folder, tokens, str(task.threads)])
        self.versions = self._worker.versions

    def prune(self, work: Work, masks: bool = False) -> Outcome:
        from safetensors.torch import load_file

        asked = {"sparsity": work.sparsity, "pattern": work.pattern, "masks": str(self._masks) if masks else None}
        seconds = self._worker.ask(json.dumps(asked))["seconds"]
        return Outcome(seconds, load_file(self._masks) if masks else None)

    def close(self) -> None:
        self._worker.close()


@dataclass
class Panel:
    """Everyone who can be had.

    Attributes:
        providers: by name.
        timed: names of those that are timed; the published loop is there to compare with in any case.
        failed: why a peer is missing or did not get to the end, by name. It is not asked again.
    """

    providers: dict[str, Engine | PublishedLoop | Compressor]
    timed: tuple[str, ...]
    failed: dict[str, str]

    def taking_part(self, work: Work) -> tuple[str, ...]:
        """pruneengine, and the peers that it promises to be faster than."""
        return tuple(name for name in self.providers if name in (OURS, TWO_PASS, *work.faster))

    def prune(self, name: str, work: Work, masks: bool = False) -> Outcome | None:
        """An outcome; None where a peer fails now or did before. pruneengine's own errors are raised."""
        if name in (OURS, TWO_PASS):
            return self.providers[name].prune(work, masks)
        if name not in self.failed:
            try:
                return self.providers[name].prune(work, masks)
            except Exception as error:
                self.failed[name] = f"{type(error).__name__}: {error}"
        return None


@contextmanager
def panel(
    model: nn.Module, tokenizer: Any, tokens: Tensor, batch_size: int, threads: int, peers: Collection[str]
) -> Iterator[Panel]:
    """pruneengine and these peers, ready to prune ``model`` behind int64 ``tokens [N, T]``."""
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task = Task(model, folder, tokens, batch_size, threads)
        found = {OURS: Engine(task, "sequential"), TWO_PASS: Engine(task, "two-pass"), LOOP: PublishedLoop(task)}
        failed = {}
        if COMPRESSOR in peers:
            try:
                found[COMPRESSOR] = Compressor(task)
                stack.callback(found[COMPRESSOR].close)
            except (OSError, RuntimeError) as error:
                failed[COMPRESSOR] = str(error)
        yield Panel(found, (OURS, TWO_PASS, *peers), failed)


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Where the weights of the decoder layers' linears are zero: bool by path."""
    return {
        path: module.weight.detach() == 0
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in path
    }
