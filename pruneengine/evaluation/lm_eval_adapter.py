"""Adapter of lm-eval to a model in memory: nothing is reloaded, and only our own progress is printed.

The environment decides whether data sets may come from the network (``HF_HUB_OFFLINE``); the model never does.
"""

from __future__ import annotations

import copy
import difflib
import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.common.errors import InputError, NotFiniteError, PruneengineError, StageError
from pruneengine.common.optional_imports import require_extra
from pruneengine.common.progress import track


def find_tasks(names: Sequence[str], include_path: str | Path | None = None) -> Any:
    """Return a task manager of lm-eval that knows all ``names``: tasks, groups or tags.

    The folder is read first, lm-eval's own thousands of task files (some seconds) only for names that the folder lacks.

    Args:
        names: names of lm-eval, or of task files in ``include_path``.
        include_path: a folder of task files; functions that they name are run.

    Raises:
        ValueError: no name, or a name that does not exist; the message has the nearest names.
        FileNotFoundError: ``include_path`` is no folder.
        ImportError: the extra ``eval`` is not installed.
    """
    if not names:
        raise InputError("tasks: none named; expected names of lm-eval or of task files in the include path")
    if include_path is not None and not Path(include_path).is_dir():
        raise FileNotFoundError(f"include path {str(include_path)!r}: there is no such folder")
    with require_extra("eval"):
        from lm_eval.tasks import TaskManager
    with quiet():
        if include_path is not None:
            local = TaskManager(include_path=str(include_path), include_defaults=False)
            if set(names) <= set(local.all_tasks):
                return local
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.5)
            raise InputError(
                f"unknown task {name!r}; the nearest are {', '.join(near)}"
                if near
                else f"unknown task {name!r}; `lm-eval ls tasks` lists all"
            )
    return manager


def load_tasks(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """Load lm-eval's task objects with their data, by name, with the tasks of a group one by one.

    Raises:
        OSError: a task's data cannot be read; the message has the reason.
    """
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        with quiet():
            try:
                tasks |= manager.load([name])["tasks"]
            # A data set's script or a task file's function may raise anything.
            except Exception as error:
                reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise OSError(f"task {name!r} cannot be loaded: {reason}") from error
    return tasks


def wrap(model: nn.Module, tokenizer: Any, batch_size: int | str, dtype: torch.dtype | None = None) -> Any:
    """Wrap a model as lm-eval's Hugging Face model; log-probabilities are taken in float32.

    Args:
        model: a transformers causal language model, on any device; it is not changed.
        tokenizer: a tokenizer of transformers; it is copied, because lm-eval sets its padding.
        batch_size: sequences per forward pass; "auto" or "auto:N" leaves the number to lm-eval.
        dtype: half precision to run a float32 model under autocast, or None.

    Raises:
        ValueError: neither the tokenizer nor the model's config names a token that begins or ends a text.
    """
    with require_extra("eval"):
        from lm_eval.models.huggingface import HFLM

    class Loaded(HFLM):
        label = "zero-shot"
        truncated = 0
        batch_schedule: Any
        _steps: Any = iter(())

        def loglikelihood(self, requests, disable_tqdm=True):
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests, disable_tqdm=True):
            return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests, disable_tqdm=True, override_bs=None):
            longest = max((len(answer) for _, _, answer in requests), default=0)
            if longest > self.max_length:
                raise InputError(f"{self.label}: an answer of {longest} tokens; the model reads {self.max_length}")
            self.truncated += sum(len(prompt) + len(answer) > self.max_length + 1 for _, prompt, answer in requests)
            # For "auto:N", lm-eval divides the requests by N, and then by zero if there are fewer than N.
            schedule, self.batch_schedule = self.batch_schedule, min(self.batch_schedule, max(len(requests), 1))
            self._steps = track(range(len(requests)), self.label)
            try:
                answers = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
            finally:
                self._steps.close()
                self.batch_schedule = schedule
            for number, (value, _) in enumerate(answers):
                # The largest of values that are not numbers is the first: a ruined model would look like chance.
                if not math.isfinite(value):
                    raise NotFiniteError(
                        f"task {self.label}: the log-likelihood of answer {number + 1} of {len(answers)} is {value:g}"
                    )
            return answers

        def _detect_batch_size(self, requests=None, pos=0):
            """Detect the batch size without progress, because its forward passes are trials."""
            steps, self._steps = self._steps, iter(())
            try:
                return super()._detect_batch_size(requests, pos)
            finally:
                self._steps = steps

        def _model_call(self, inps, *args, **kwargs):
            for _ in range(len(inps)):
                next(self._steps, None)
            return super()._model_call(inps, *args, **kwargs)

        def get_model_info(self):
            """Return nothing; the original asks the hub about the model's name."""
            return {}

    precision = {} if dtype is None else {"mixed_precision_dtype": dtype}
    with quiet():
        return Loaded(
            pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size,
            softmax_dtype=torch.float32, prefix_token_id=_prefix(model, tokenizer), **precision,
        )  # fmt: skip


def _prefix(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the token for an empty context; None leaves it to lm-eval, which asks only the tokenizer."""
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None:
        return None
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(model.config, name, None)
        if token is not None:
            return token[0] if isinstance(token, list) else token
    raise InputError("the tokenizer and the config name no BOS and no EOS token: lm-eval needs one")


def measure(wrapped: Any, task: Any, limit: int | None) -> dict[str, Any]:
    """Return the output of lm-eval's ``evaluate`` for one task object, without setting a seed of this process.

    ``simple_evaluate`` would also seed torch and numpy and list the packages of this machine, which takes longer than a
    small task. ``wrapped.truncated`` counts the prompts that were too long for the model and lost their beginning.

    Raises:
        FloatingPointError: the log-likelihood of an answer is not finite.
        RuntimeError: the task itself failed; the message names it.
    """
    import lm_eval
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    wrapped.label, wrapped.truncated = task.task_name, 0
    with quiet():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        try:
            return lm_eval.evaluate(wrapped, {"tasks": {task.task_name: task}}, limit=limit, bootstrap_iters=1000)
        except PruneengineError:
            raise
        # A task's own functions, and those that sum up its items, may raise anything.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise StageError(f"task {task.task_name!r} failed: {type(error).__name__}: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval and datasets within the context: no bars, no messages below errors, no prints."""
    import datasets
    from tqdm import std

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars, original = datasets.are_progress_bars_disabled(), std.tqdm.__init__
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    std.tqdm.__init__ = partialmethod(original, disable=True)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        std.tqdm.__init__ = original
        if not bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
