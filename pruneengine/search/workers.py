"""Worker processes of one study, which share weights and statistics in memory and trials in the study's storage."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from pruneengine.search.loop import TrialLoop
from pruneengine.search.study import counted, fail_abandoned, reopen_study, running


def run_workers(
    loop: TrialLoop, storage: str, workers: int, deadline: float | None, say: Callable[[str], None]
) -> None:
    """Run a loop here, and in ``workers - 1`` further processes.

    A worker that dies costs its trial: the trial is marked as failed and another is drawn. The same holds for trials
    that other machines abandoned (:func:`pruneengine.search.study.fail_abandoned`).

    Args:
        loop: the loop that every worker runs.
        storage: storage of the loop's study.
        workers: number of processes in all; each gets its share of the threads.
        deadline: as of :meth:`TrialLoop.run`.
        say: told of a worker that died, and of trials that others left.
    """
    if workers == 1:
        loop.run(deadline)
    else:
        _share(loop, storage, workers, deadline, say)
    # Trials that were lost meanwhile are drawn again.
    fail_abandoned(loop.study)
    if counted(loop.study) < loop.config.trials:
        loop.run(deadline)
    if unfinished := running(loop.study):
        say(f"{len(unfinished)} trial(s) of other processes still run, or were lost: what they find is not waited for")


def _share(loop: TrialLoop, storage: str, workers: int, deadline: float | None, say: Callable[[str], None]) -> None:
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    context = torch.multiprocessing.get_context("spawn")
    name = loop.study.study_name
    bare = replace(loop, study=None)
    processes = [
        context.Process(target=_work, args=(bare, name, storage, share, deadline, os.getpid()), daemon=True)
        for _ in range(workers - 1)
    ]
    torch.set_num_threads(share)
    try:
        for process in processes:
            process.start()
        loop.run(deadline, workers)
        for process in processes:
            process.join()
            if process.exitcode:
                say(f"a worker ended with exit status {process.exitcode}; its trial is lost")
    finally:
        torch.set_num_threads(threads)
        for process in processes:
            if process.is_alive():
                process.terminate()


def _work(loop: TrialLoop, name: str, storage: str, threads: int, deadline: float | None, parent: int) -> None:
    torch.set_num_threads(threads)
    mine = replace(loop, study=reopen_study(name, storage))
    mine.run(deadline, go_on=lambda: os.getppid() == parent)
