"""Help of the verbs: defaults that it states are those of the configs, and former names of options still work."""

import dataclasses
import re

import pytest
from typer.main import get_command

pytest.importorskip("optuna")

from pruneengine import PruneConfig, RecoverConfig, SparseConfig
from pruneengine.cli import app
from pruneengine.cli.app import FIELDS
from pruneengine.cli.options.option import ADAPRUNER, DSA, HYWIA, SPARSE, STRUCTURED
from pruneengine.common.errors import InputError
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.dsa.config import DsaConfig
from tests.cli.test_prune import run

VERBS = get_command(app).commands
CONFIGS = {
    "prune": (PruneConfig, SparseConfig),
    "search": (AdaPrunerConfig, DsaConfig),
    "recover": (RecoverConfig,),
}
# Panels whose options belong to one of a verb's configs: its position.
OWNERS = {STRUCTURED: 0, HYWIA: 0, ADAPRUNER: 0, SPARSE: 1, DSA: 1}
# A command line must name the target, and flags that are off need no word.
UNSTATED = {"ratio", "sparsity", "data", "gradient_checkpointing"}


def config_options():
    for verb, configs in CONFIGS.items():
        for option in VERBS[verb].params:
            field = FIELDS.get(option.name, option.name)
            panel = getattr(option, "rich_help_panel", None)
            owners = configs[OWNERS[panel] : OWNERS[panel] + 1] if panel in OWNERS else configs
            kinds = [kind for kind in owners if field in {f.name for f in dataclasses.fields(kind)}]
            if kinds and option.name not in UNSTATED and not option.hidden:
                yield pytest.param(option, field, kinds, id=f"{verb}-{option.name}")


def same(text, value):
    if isinstance(value, bool):
        return text == {True: "pack", False: "crop"}[value]
    if isinstance(value, tuple):
        return text == (",".join(map(str, value)) or "none")
    return text == value if isinstance(value, str) else float(text) == value


@pytest.mark.parametrize(("option", "field", "kinds"), config_options())
def test_help_states_the_default_of_the_config(option, field, kinds):
    stated = re.search(r" \\\[default: (.+)\]$", option.help)
    assert stated, f"{option.name} states no default"
    texts = re.split("; (?:sparse|dsa): ", stated[1])
    for position, kind in enumerate(kinds):
        default = next(f.default for f in dataclasses.fields(kind) if f.name == field)
        # None stands for a rule, which the help tells in words.
        if default is not None:
            assert same(texts[min(position, len(texts) - 1)], default), f"{kind.__name__}.{field} is {default!r}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_text_is_a_phrase(verb):
    for option in VERBS[verb].params:
        text = re.sub(r" \\\[default: .+\]$", "", option.help or "")
        assert re.match("[A-Z]|p-value", text), f"{option.name}: {text}"
        assert text.endswith((".", "...")), f"{option.name}: {text}"


def test_common_options_come_first_and_former_names_are_not_shown():
    for verb, count in (("prune", 12), ("search", 11)):
        options = [option for option in VERBS[verb].params if option.param_type_name == "option"]
        panels = [option.rich_help_panel for option in options if not option.hidden]
        assert panels.index(next(panel for panel in panels if panel)) <= count + 1
        assert None not in panels[panels.index(next(panel for panel in panels if panel)) :]
        shown = run(verb, "--help").stdout
        assert "--kinds" in shown
        assert "--structure" not in shown
        assert "--held-out " not in shown


@pytest.fixture
def configs(monkeypatch):
    """Configs that jobs were started with, in place of running them."""
    started = []

    def start(config, *_, **__):
        started.append(config)
        raise InputError("stopped here")

    for job in ("prune", "prune_sparse", "search", "search_dsa"):
        monkeypatch.setattr(f"pruneengine.jobs.{job}.run", start)
    return started


@pytest.mark.parametrize("name", ["--kinds", "--structure"])
@pytest.mark.parametrize("verb", ["prune", "search"])
def test_kinds_by_either_name(configs, tmp_path, verb, name):
    run(verb, "model", "--out", tmp_path / "out", "--ratio", 0.5, name, "mlp")
    assert configs[0].kinds == ("mlp",)


@pytest.mark.parametrize("key", ["kinds", "structure"])
def test_kinds_win_over_those_of_a_recipe(configs, tmp_path, key):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"config: {{ratio: 0.5, {key}: [heads]}}\n")
    run("prune", "model", "--out", tmp_path / "out", "--recipe", recipe, "--kinds", "mlp")
    assert configs[0].kinds == ("mlp",)


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("adapruner", ("--held-out-windows", 4, "--windows", 6), {"held_out": 4, "windows": 6}),
        ("adapruner", ("--held-out", 4), {"held_out": 4, "windows": 16}),
        ("dsa", ("--held-out-share", 0.5, "--total-windows", 8), {"held_out": 0.5, "windows": 8}),
        ("dsa", ("--held-out", 0.5, "--windows", 8), {"held_out": 0.5, "windows": 8}),
    ],
)
def test_windows_of_a_search_by_either_name(configs, tmp_path, method, options, expected):
    target = ("--ratio", 0.5) if method == "adapruner" else ("--sparsity", 0.5)
    done = run("search", "model", "--out", tmp_path / "out", "--method", method, *target, *options)
    assert "stopped here" in done.stderr
    assert {name: getattr(configs[0], name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ratio", 0.5, "--kinds", "mlp", "--structure", "mlp"), "--kinds and --structure are names of one option"),
        (("--ratio", 0.5, "--held-out", 4, "--held-out-windows", 4), "--held-out-windows and --held-out are names"),
        (("--ratio", 0.5, "--held-out-share", 0.2), "--held-out-share: options of --method dsa"),
        (("--ratio", 0.5, "--total-windows", 20), "--total-windows: options of --method dsa"),
        (
            ("--method", "dsa", "--sparsity", 0.5, "--held-out-windows", 4),
            "--held-out-windows: options of --method ada",
        ),
        (("--method", "dsa", "--sparsity", 0.5, "--kinds", "mlp"), "--kinds: options of --method adapruner"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path, options, message):
    done = run("search", "model", "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
