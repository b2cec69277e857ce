"""Results of one model, as a value and as ``results.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from torch import nn

from pruneengine.common.errors import InputError
from pruneengine.common.files import write_atomically
from pruneengine.evaluation.perplexity import PerplexityResult, kv_cache_bytes, model_size
from pruneengine.evaluation.speed import SpeedResult
from pruneengine.evaluation.zero_shot import Metric, TaskResult
from pruneengine.model import find_groups, model_fingerprint

SCHEMA = "pruneengine.results/1"
FILE_NAME = "results.json"
# Types of JSON values by the name of a field's type; other fields are checked where they are built.
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "Mapping": (dict,),
    "tuple": (list,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


@dataclass(frozen=True)
class ModelFacts:
    """Identity and sizes of a model.

    Attributes:
        source: folder, file or hub name of the model.
        fingerprint: fingerprint of the weights, :func:`pruneengine.model.model_fingerprint`.
        parameters: number of parameters; a tied one counts once.
        weight_bytes: bytes of the parameters in ``dtype``.
        kv_bytes_per_token: bytes by which the cache grows per token, in ``dtype``.
        dtype: dtype of the weights.
    """

    source: str
    fingerprint: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    dtype: str

    @classmethod
    def of(cls, model: nn.Module, source: str) -> ModelFacts:
        size, weight = model_size(model), next(model.parameters())
        return cls(
            source, model_fingerprint(model), size.parameters, size.bytes,
            kv_cache_bytes(find_groups(model), weight.element_size()), str(weight.dtype).removeprefix("torch."),
        )  # fmt: skip


@dataclass(frozen=True)
class TextResult:
    """Perplexity on one text: :class:`PerplexityResult`, with the name of the text."""

    text: str
    seqlen: int
    windows: int
    perplexity: float
    nll: float
    tokens: int
    per_window: tuple[float, ...]
    dtype: str
    seconds: float
    samples: str

    @classmethod
    def of(cls, text: str, seqlen: int, result: PerplexityResult) -> TextResult:
        values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        values["per_window"] = tuple(result.per_window.tolist())
        return cls(text=text, seqlen=seqlen, windows=len(result.per_window), **values)

    @property
    def name(self) -> str:
        """Name of the measurement: other windows of the same text are another measurement."""
        return f"{self.text}, {self.windows:,} windows of {self.seqlen}"


@dataclass(frozen=True)
class Beside:
    """Speed of another model, measured in turn with this one: only such a pair tells which is faster."""

    model: ModelFacts
    speed: SpeedResult


@dataclass(frozen=True)
class Results:
    """Everything measured on one model; measurements that were not made are empty or None.

    Attributes:
        texts: perplexity by :attr:`TextResult.name`.
        tasks: results of tasks by name.
        speed: tokens per second of the model.
        dense: speed of the model that was measured in turn with it.
        versions: versions of the packages of the last measurement.
        date: date of the last measurement, ISO.
    """

    model: ModelFacts
    texts: Mapping[str, TextResult] = field(default_factory=dict)
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    speed: SpeedResult | None = None
    dense: Beside | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = field(default_factory=lambda: date.today().isoformat())

    def with_text(self, result: TextResult) -> Results:
        return replace(self, texts={**self.texts, result.name: result})

    def with_task(self, result: TaskResult) -> Results:
        return replace(self, tasks={**self.tasks, result.task: result})

    def same_model(self, other: Results) -> bool:
        """Return True if both results are of the same weights in the same dtype."""
        ours, theirs = self.model, other.model
        return (ours.fingerprint, ours.dtype) == (theirs.fingerprint, theirs.dtype)

    def difference(self, other: Results) -> str:
        """Return a phrase on the model of ``other``, for results that are not of the :meth:`same_model`.

        Another dtype has another fingerprint, so name and size tell whether it is the same model.
        """
        ours, theirs = self.model, other.model
        if ours.dtype != theirs.dtype and (ours.source, ours.parameters) == (theirs.source, theirs.parameters):
            return f"{theirs.source} in {theirs.dtype}, not in {ours.dtype}"
        return f"other weights ({theirs.source}, {theirs.dtype})"

    def after(self, earlier: Results) -> Results:
        """Return these results, completed by those of ``earlier`` unless it is of another model or dtype."""
        if not self.same_model(earlier):
            return self
        pair = (self.speed, self.dense) if self.speed is not None else (earlier.speed, earlier.dense)
        return replace(
            self, texts={**earlier.texts, **self.texts}, tasks={**earlier.tasks, **self.tasks},
            speed=pair[0], dense=pair[1],
        )  # fmt: skip

    def to_json(self) -> str:
        values = _finite({"schema": SCHEMA, **dataclasses.asdict(self)})
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "results") -> Results:
        """Read results from the text of :meth:`to_json`.

        Raises:
            ValueError: no JSON, another schema, or a field that is missing or unknown; ``where`` names the origin.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error})") from None
        schema = values.pop("schema", None) if isinstance(values, dict) else None
        if schema != SCHEMA:
            raise InputError(f"{where}: schema {schema!r}, expected {SCHEMA!r}")
        results = _build(cls, values, where)
        dense = results.dense
        if dense is not None:
            dense = _build(Beside, dense, f"{where}: dense")
            dense = Beside(
                _build(ModelFacts, dense.model, f"{where}: dense"), _build(SpeedResult, dense.speed, f"{where}: dense")
            )
        return replace(
            results, model=_build(ModelFacts, results.model, f"{where}: model"), dense=dense,
            # By the texts' own names, because earlier versions used other keys.
            texts={text.name: text for text in (_text(v, f"{where}: texts: {k}") for k, v in results.texts.items())},
            tasks={name: _task(value, f"{where}: tasks: {name}") for name, value in results.tasks.items()},
            speed=None if results.speed is None else _build(SpeedResult, results.speed, f"{where}: speed"),
        )  # fmt: skip

    def write(self, path: str | Path) -> None:
        write_atomically(path, self.to_json())


def read_results(path: str | Path) -> Results:
    """Read the results in a file, or in the ``results.json`` of a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else; the message names the file and the field.
    """
    file = Path(path).expanduser()
    file = file / FILE_NAME if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"no results at {str(file)!r}: `pruneengine eval` writes them")
    return Results.from_json(file.read_text(encoding="utf-8"), str(file))


def _text(value: Any, where: str) -> TextResult:
    result = _build(TextResult, value, where)
    return replace(result, per_window=_numbers(result.per_window))


def _task(value: Any, where: str) -> TaskResult:
    result = _build(TaskResult, value, where)
    metrics = {name: _build(Metric, metric, f"{where}: {name}") for name, metric in result.metrics.items()}
    for name, metric in metrics.items():
        if metric.per_item is not None:
            metrics[name] = replace(metric, per_item=_numbers(metric.per_item))
    return replace(result, metrics=metrics)


def _finite(value: Any) -> Any:
    """Return JSON values with null for every number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    """Return a list of a file, with NaN for null."""
    return tuple(math.nan if value is None else value for value in values)


def _build(cls: type, values: Any, where: str) -> Any:
    """Build a dataclass from a JSON object that has exactly its fields; ValueError otherwise."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: {type(values).__name__}, expected an object")
    names = {f.name for f in dataclasses.fields(cls)}
    if names != values.keys():
        odd = sorted(names ^ values.keys())[0]
        raise InputError(f"{where}: field {odd!r} is {'missing' if odd in names else 'unknown'}")
    for f in dataclasses.fields(cls):
        kind = str(f.type)
        if values[f.name] is None and kind.endswith("| None"):
            continue
        if values[f.name] is None and kind == "float":
            values = values | {f.name: math.nan}
        value, types = values[f.name], JSON_TYPES.get(kind.partition("[")[0], (object,))
        if not isinstance(value, types):
            raise InputError(f"{where}: field {f.name!r} is {value!r}, expected {kind}")
    return cls(**values)
