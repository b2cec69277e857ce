"""Optuna study of a search: storage, identity, abandoned trials, and the sampler of the next trial."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneengine.common.errors import InputError
from pruneengine.common.optional_imports import require_extra
from pruneengine.common.passwords import without_passwords

if TYPE_CHECKING:
    import optuna

MEMORY = "memory"
# Keys of the attributes of a study and of its trials.
IDENTITY, BASELINE, HELD_OUT = "identity", "baseline: ", "held out: "
WORKER, MASK, ORIGIN, START, SECONDS, ILLEGAL = "worker", "mask", "origin", "start", "seconds", "illegal"
KV_BYTES = "KV bytes a token"
AT_WORK = "at work: "
# A trial of another machine is lost once it has run for both: these seconds, and this multiple of the longest trial.
LEASE_SECONDS, LEASE_TRIALS = 600.0, 10


def open_study(name: str, storage: str, identity: dict[str, Any]) -> optuna.Study:
    """Create a study; or open an existing one, and fail its abandoned trials.

    Args:
        name: name of the study in the storage.
        storage: ``journal:FILE``, which needs nothing and survives a killed process; the URL of a database that
            SQLAlchemy knows (``sqlite:///FILE``, ``postgresql://...``), which workers on several machines can share;
            or ``memory``, which ends with the process.
        identity: values that two runs of one study must share; a study of another model, text or space is refused.

    Raises:
        ValueError: a storage of unknown kind, or a study of this name about something else; the message says which
            value differs.
        ImportError: as :func:`check_storage`.
        ConnectionError: the storage does not answer.
    """
    with require_extra("search"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        place = _storage(storage)
        study = optuna.create_study(study_name=name, storage=place, direction="minimize", load_if_exists=True)
        known = study.user_attrs.get(IDENTITY)
    except (ValueError, ImportError):
        raise
    # SQLAlchemy, its drivers and the journal raise errors of many types.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(without_passwords(f"storage {storage} cannot be used: {reason}")) from None
    if known is None:
        study.set_user_attr(IDENTITY, identity)
    else:
        _check_same(name, known, json.loads(json.dumps(identity)))
        fail_abandoned(study)
    return study


def reopen_study(name: str, storage: str) -> optuna.Study:
    """Return a study that :func:`open_study` opened in another process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name=name, storage=_storage(storage))


def fail_abandoned(study: optuna.Study) -> int:
    """Mark trials that no worker will end as failed, so that others are drawn in their places; return their number.

    A trial of this machine is abandoned when its process has ended. A trial of another machine is abandoned when it has
    run for both :data:`LEASE_SECONDS` and :data:`LEASE_TRIALS` times the longest ended trial. If such a worker is in
    fact alive, its trial is discarded and it continues with the next. A trial without a recorded worker is failed only
    when no worker of the study is alive.
    """
    import optuna

    told = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])
    lengths = [trial.duration.total_seconds() for trial in told]
    lease = max(LEASE_SECONDS, LEASE_TRIALS * max(lengths, default=0.0))
    marks = study.user_attrs
    workers = [key.removeprefix(AT_WORK) for key in marks if key.startswith(AT_WORK) and marks[key]] or [""]
    abandoned = 0
    for trial in running(study):
        age = (datetime.now() - trial.datetime_start).total_seconds()
        signed = trial.user_attrs.get(WORKER)
        if all(_is_lost(worker, age, lease) for worker in ([signed] if signed else workers)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            abandoned += 1
    return abandoned


def running(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that a process works on, or worked on when it died."""
    import optuna

    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])


def this_worker() -> str:
    """Return the name of this worker: ``host:process``."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def at_work(study: optuna.Study) -> Iterator[None]:
    """Record this process as a worker within the context: it may be killed before it has signed a trial."""
    study.set_user_attr(AT_WORK + this_worker(), True)
    try:
        yield
    finally:
        study.set_user_attr(AT_WORK + this_worker(), False)


def ask(study: optuna.Study) -> optuna.trial.Trial:
    """Return the next trial, signed by this worker."""
    trial = study.ask()
    trial.set_user_attr(WORKER, this_worker())
    return trial


def counted(study: optuna.Study) -> int:
    """Return the number of trials that were drawn and not lost: running, stopped early or complete."""
    import optuna

    return sum(
        trial.state not in (optuna.trial.TrialState.FAIL, optuna.trial.TrialState.WAITING)
        for trial in study.get_trials(deepcopy=False)
    )


def sampler(kind: str, seed: int, position: int, startup: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial, seeded by the trial's position (:func:`trial_seed`)."""
    import optuna

    seeded = trial_seed(seed, position)
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seeded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seeded, n_startup_trials=startup, multivariate=True, group=True)


def trial_seed(seed: int, position: int) -> int:
    """Return the seed of the trial at a position in the study.

    Every trial has a fresh sampler, so that no state lives in a process. A search that was killed and resumed draws
    what an unbroken one would have drawn.
    """
    return (seed * 1_000_003 + position) % 2**32


def check_storage(url: str) -> None:
    """Raise an error for a storage that cannot be, without opening it; call it before a model is loaded.

    Raises:
        ValueError: a storage of unknown kind.
        ImportError: the driver of a database is not installed; the message names its package.
    """
    kind, colon, rest = url.partition(":")
    journal = kind == "journal"
    if url != MEMORY and (not colon or not rest or (journal and "://" in rest)):
        raise InputError(
            f"storage {without_passwords(url)!r}: expected journal:FILE or a database URL such as sqlite:///FILE, or "
            "memory"
        )
    if url == MEMORY or journal:
        return
    with require_extra("search"):
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    try:
        make_url(url).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        raise ImportError(f"storage {without_passwords(url)} needs the package {error.name}") from None
    except ArgumentError as error:
        reason = without_passwords(" ".join(str(error).split()))
        raise InputError(f"storage {without_passwords(url)!r} is no URL of a known database: {reason}") from None


def _storage(url: str) -> Any:
    from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage

    from pruneengine.search.journal import Journal

    check_storage(url)
    if url == MEMORY:
        return InMemoryStorage()
    if url.startswith("journal:"):
        # Absolute: the lock is a link to the file, and a relative link would point beside itself.
        path = Path(url.removeprefix("journal:")).expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(Journal(str(path)))
    return RDBStorage(url)


def _check_same(name: str, known: dict[str, Any], identity: dict[str, Any]) -> None:
    for key in known | identity:
        if known.get(key) != identity.get(key):
            raise InputError(
                f"study {name!r} is about something else: its {key} is {known.get(key)!r}, this search's is "
                f"{identity.get(key)!r}; choose another --study or --storage"
            )


def _is_lost(worker: str, age: float, lease: float) -> bool:
    """Return whether the worker of a trial begun ``age`` seconds ago has ended, or kept it for longer than a lease."""
    host, _, process = worker.rpartition(":")
    return not _alive(int(process), age) if host == socket.gethostname() else age > lease


def _alive(process: int, age: float) -> bool:
    """Return whether a process of this machine has lived for ``age`` seconds: numbers of ended ones are given again."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    # The 22nd field, in ticks since the machine was started (proc(5)). A minute's grace: clocks are set, now and then.
    lifetime = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return lifetime > age - 60
