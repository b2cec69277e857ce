"""Course of every job that makes a checkpoint: load, measure, change, measure, train, save, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pruneengine.checkpoint.output_folder import OutputFolder, remove_leftovers
from pruneengine.checkpoint.reload_proof import reload_and_generate
from pruneengine.checkpoint.write import SavedCheckpoint, save
from pruneengine.common.files import check_space
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import Samples
from pruneengine.evaluation.measures import Measurer, Measures
from pruneengine.jobs.checks import check_windows
from pruneengine.jobs.options import CheckpointOptions
from pruneengine.jobs.recover_pruned import PlannedRecovery, Recovered, recover_pruned
from pruneengine.model.checks import check_positions
from pruneengine.recovery import RecoverConfig, check_recovery, check_work_folder, load_rows, work_folder
from pruneengine.report import write_report


@dataclass(frozen=True, kw_only=True)
class CheckpointResult:
    """Result of a job that made a checkpoint; each kind of job adds what it decided.

    Attributes:
        dense, pruned: measures of the model before and after the change.
        saved: the checkpoint.
        recovered: outcome of the training after the change; None without one.
        text: continuation of the prompt by the reloaded checkpoint; None without a prompt.
        warnings: of all stages, in their order.
        seconds: by stage, in the order in which the stages began.
    """

    dense: Measures
    pruned: Measures
    saved: SavedCheckpoint
    recovered: Recovered | None = None
    text: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def closing_values(self, prompt: str | None = None) -> dict[str, Any]:
        """Return the values that a report closes with: reload proof, continuation of ``prompt``, and seconds."""
        values = proof_values(self.saved)
        if self.text is not None:
            values |= {"prompt": prompt, "continuation": self.text}
        return values | {"seconds": dict(self.seconds)}


@dataclass
class CheckpointJob:
    """State of a running job: the model, and what every stage adds to.

    Attributes:
        options: source, output folder and evaluation text.
        say: told what is being done, a line at a time.
        model: changed in place by the caller, between :meth:`dense` and :meth:`changed`.
        tokenizer: of the model.
        clock: seconds by stage.
        output: where the checkpoint goes, as it was found before the work; None for a dry run.
        evaluation: windows that perplexities are measured on; None measures no perplexity.
        warnings: collected so far.
        dense_config: config of the dense model, once :meth:`dense` has measured it; the model card shows it.
    """

    options: CheckpointOptions
    say: Callable[[str], None]
    model: nn.Module
    tokenizer: Any
    clock: Stopwatch
    output: OutputFolder | None = None
    evaluation: Samples | None = None
    warnings: tuple[str, ...] = ()
    dense_config: dict[str, Any] | None = None

    @classmethod
    def load(
        cls, options: CheckpointOptions, say: Callable[[str], None], windows: Mapping[str, int] | None = None
    ) -> CheckpointJob:
        """Return a job whose model is loaded.

        Args:
            options: name the model, and the windows it is measured on.
            say: told what is being done.
            windows: tokens per window of further texts, by a name for messages.

        Raises:
            ValueError, OSError: as :func:`pruneengine.checkpoint.load.load_model`, or windows that are too long for the
                model (:func:`pruneengine.model.checks.check_positions`).
        """
        measured = {"evaluation windows": options.eval_seqlen} if options.eval_text and options.out is not None else {}
        recovery = getattr(options, "recover", None)
        trained = {} if recovery is None or options.out is None else {"training windows (cutoff)": recovery.cutoff}
        windows = {**(windows or {}), **trained, **measured}
        check_windows(options.source, windows)
        clock, output = Stopwatch(), None
        if options.out is not None:
            output = options.claim()
            remove_leftovers(output, say)
        model, tokenizer = options.load(clock, say)
        warnings = check_positions(getattr(model, "config", None), windows)
        return cls(options, say, model, tokenizer, clock, output, warnings=warnings)

    @property
    def out(self) -> Path:
        """The folder of the checkpoint; a dry run has none and must not ask for it."""
        assert self.options.out is not None, "a dry run saves nothing"
        return self.options.out

    @property
    def measurer(self) -> Measurer:
        """The measurer of models on the evaluation text, in the job's dtype."""
        return Measurer(self.evaluation, self.options.compute_dtype)

    def check_recovery(self, config: RecoverConfig | None) -> None:
        """Raise as :func:`pruneengine.recovery.check_recovery`; None is always possible."""
        if config is not None:
            check_recovery(self.model, config, trust_remote_code=self.options.trust_remote_code)

    def plan_recovery(self, config: RecoverConfig | None) -> PlannedRecovery | None:
        """Return the training that follows the change, with its rows read and its folder checked; None without one.

        Raises:
            ValueError, OSError: a text without rows, or a folder that belongs to another training.
        """
        if config is None:
            return None
        with self.clock("text"):
            rows = load_rows(config, self.tokenizer, self.model)
        work = work_folder(self.out)
        check_work_folder(work, config, rows, self.options.compute_dtype)
        return PlannedRecovery(config, rows, work)

    def dense(self) -> Measures:
        """Return the measures of the dense model, and remember its config for the model card."""
        measures = self.measure()
        config: Any = self.model.config
        self.dense_config = config.to_dict()
        return measures

    def measure(self) -> Measures:
        """Return the measures of the model as it is; the clock gains "evaluate"."""
        with self.clock("evaluate"):
            return self.measurer.measure(self.model)

    def changed(self) -> Measures:
        """Return the measures of the changed model; a loss that is not finite is a warning, so that it is saved."""
        with self.clock("evaluate"):
            measures, warnings = self.measurer.measure_pruned(self.model)
        self.warnings += warnings
        return measures

    def recover(self, planned: PlannedRecovery | None, before: Measures, store: Callable[[], Path]) -> Recovered | None:
        """Train the changed model in place as :func:`recover_pruned`, and return the outcome; None without a plan.

        Args:
            planned: by :meth:`plan_recovery`.
            before: measures of the changed model.
            store: saves the model without the training, if that fails, and returns the folder.

        Raises:
            RuntimeError: as :func:`recover_pruned`.
        """
        if planned is None:
            return None
        self.say(planned.announcement)
        recovered = recover_pruned(
            self.model, self.tokenizer, planned, before=before, measurer=self.measurer, store=store, clock=self.clock,
            trust_remote_code=self.options.trust_remote_code,
        )  # fmt: skip
        self.warnings += recovered.warnings
        return recovered

    def store(self, **contents: Any) -> SavedCheckpoint:
        """Save the model into ``out`` and prove it where the options ask for it; the clock gains "save".

        Args:
            contents: plan, recipe, report, ... of :func:`pruneengine.checkpoint.write.save`.

        Raises:
            ValueError, OSError, RuntimeError: as :func:`pruneengine.checkpoint.write.save`.
        """
        options = self.options
        self.say(f"saving {self.out}" + (", and reopening it in a fresh process" if options.proof else ""))
        with self.clock("save"):
            saved = save(
                self.model, self.tokenizer, self.output or options.claim(), proof=options.proof,
                dense_config=self.dense_config, **contents,
            )  # fmt: skip
        if saved.unproved is not None:
            self.warnings += (f"the checkpoint in {saved.path} is complete and unproved: {saved.unproved}",)
        return saved

    def check_room(self, share: float = 1.0) -> None:
        """Raise OSError if the checkpoint will not fit on the disk of ``out``; call it before work is spent.

        Args:
            share: fraction of the model's parameters that the checkpoint will hold.
        """
        if self.output is not None:
            size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
            check_space(self.output.path, int(share * size))

    def report(self, saved: SavedCheckpoint, verb: str, values: Mapping[str, Any]) -> None:
        """Write the report of a saved checkpoint, as :func:`pruneengine.report.write_report`.

        Raises:
            Exception: whatever fails, with a note that the checkpoint is safe.
        """
        try:
            write_report(saved.path, verb, values, self.say)
        except Exception as error:
            error.add_note(f"The checkpoint is complete and saved in {saved.path}; only its report is missing.")
            raise

    def continuation(self, saved: SavedCheckpoint, prompt: str | None) -> str | None:
        """Return 24 tokens with which the checkpoint continues ``prompt`` in a fresh process; None without a prompt."""
        if not prompt:
            return None
        with self.clock("generate"):
            return reload_and_generate(saved.path, prompt, max_new_tokens=24)


def proof_values(saved: SavedCheckpoint) -> dict[str, Any]:
    """Return the reload proof as a report holds it; empty without one."""
    return {} if saved.proof is None else {"proof": asdict(saved.proof)}
