"""Reload proof: transformers alone opens a checkpoint in a fresh process and gives the logits it was saved with."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruneengine.checkpoint.config_json import loader_of, runs_shipped_code
from pruneengine.common.errors import OUT_OF_MEMORY, PruneengineError
from pruneengine.model import auto_class, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest difference of a logit, relative to the largest logit. Both sides use the same device, kernels and precision;
# only thread counts may differ.
LOGIT_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
PROOF_TEXT = "Pruned models load anywhere: 1, 2, 3."


@dataclass(frozen=True)
class ReloadProof:
    """Measurements of the fresh process.

    Attributes:
        max_difference: largest absolute difference of a finite logit; the other logits are not finite on both sides.
        tolerance: largest allowed ``max_difference``, in the same unit.
        argmax_agreement: fraction of positions with the same most likely token, 0 to 1.
        loader: the call that opened the checkpoint.
        seconds: wall time of the proof.
    """

    max_difference: float
    tolerance: float
    argmax_agreement: float
    loader: str
    seconds: float


# Script of the fresh process.
CHILD = Path(__file__).with_name("reload_child.py")


class ReloadError(PruneengineError, RuntimeError):
    """Error: a checkpoint does not open in a fresh process, or gives other logits than the model in memory."""


class ProofStoppedError(ReloadError):
    """Error: the process of a proof was killed or ran out of memory, which says nothing of the checkpoint."""


def prove_reload(folder: str | Path, model: PreTrainedModel, tokenizer: Any = None) -> ReloadProof:
    """Open ``folder`` in a fresh Python process and compare its logits on fixed tokens with those of ``model``.

    The process runs on the model's device, offline, without pruneengine. With a tokenizer, a fixed sentence must also
    give the same token ids.

    Raises:
        ProofStoppedError: the process was killed, or had too little memory.
        ReloadError: the checkpoint does not open, keys are missing, or dtype, logits or token ids differ.
    """
    start, folder = time.perf_counter(), Path(folder).resolve()
    tokens = fixed_tokens(text_config(model.config).vocab_size)
    expected = _logits(model, tokens)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.safetensors"
        text = PROOF_TEXT if tokenizer is not None else None
        answer = _run(
            folder,
            model.device,
            getattr(model.config, "_attn_implementation", None),
            tokens=tokens.tolist(),
            logits=str(file),
            text=text,
        )
        from safetensors.torch import load_file

        actual = load_file(file)["logits"]
    if answer["wrong_keys"]:
        raise ReloadError(f"the checkpoint reloads with wrong weights: {', '.join(answer['wrong_keys'][:4])}")
    if answer["dtype"] != str(model.dtype):
        raise ReloadError(f"the checkpoint reloads as {answer['dtype']}, saved from {model.dtype}")
    if text is not None and answer["ids"] != list(tokenizer(text)["input_ids"]):
        raise ReloadError("the checkpoint reloads with a tokenizer that gives other token ids than the one saved")
    difference = _difference(actual, expected)
    tolerance = LOGIT_TOLERANCE.get(model.dtype, 1e-2) * max(1.0, expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item())
    agreement = (actual.argmax(-1) == expected.argmax(-1)).float().mean().item()
    if difference > tolerance:
        raise ReloadError(
            f"the checkpoint reloads with other logits: largest difference {difference:.3g} "
            f"(tolerance {tolerance:.3g}), {agreement:.0%} of the most likely tokens agree"
        )
    loader = loader_of(_config(folder))
    return ReloadProof(difference, tolerance, agreement, loader, time.perf_counter() - start)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference of a finite logit, or infinity if other logits are finite.

    A model that overflows must overflow at the same logits again.
    """
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return math.inf
    return (actual - expected)[finite].abs().max().item() if bool(finite.any()) else 0.0


def reload_and_generate(folder: str | Path, prompt: str, max_new_tokens: int = 20) -> str:
    """Return the greedy continuation of ``prompt`` by the checkpoint in ``folder``, from a fresh process on the CPU.

    Raises:
        ReloadError: the checkpoint or its tokenizer does not open there.
    """
    job = {"prompt": prompt, "max_new_tokens": max_new_tokens}
    return _run(Path(folder).resolve(), torch.device("cpu"), None, **job)["text"]


def fixed_tokens(vocab_size: int, longest: int | None = None) -> Tensor:
    """Return the same few token ids on every call, int64 ``[2, 24]``, or ``[2, longest]`` if that is shorter."""
    length = min(24, longest or 24)
    return (torch.arange(2 * length).reshape(2, length) * 7919 + 11) % vocab_size


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        return model(tokens.to(model.device)).logits.float().cpu()
    finally:
        model.train(training)


def _run(folder: Path, device: torch.device, attention: str | None, **job: Any) -> dict[str, Any]:
    job |= {
        "folder": str(folder),
        "auto_class": auto_class(_config(folder).get("model_type")),
        "trust_remote_code": runs_shipped_code(folder),
        "device": str(device),
        "attention": attention,
        "precision": torch.get_float32_matmul_precision(),
    }
    script = CHILD.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        # Modelling files are copied to a cache before they run; a cache of its own cannot hold an older copy.
        quiet = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch, "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            cwd=scratch,
            env=os.environ | quiet,
        )
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ProofStoppedError(f"the process that reopens the checkpoint was killed ({name})")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        kind = ProofStoppedError if OUT_OF_MEMORY.search(reason) else ReloadError
        raise kind(f"the checkpoint does not open in a fresh process: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])
