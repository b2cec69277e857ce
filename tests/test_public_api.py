"""Public paths: what users may import, and what must go on working when files move."""

import json
import pkgutil
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import pruneengine as pe

ROOT = Path(__file__).parents[1]
NAMES = {
    "ALLOCATIONS", "COMPENSATIONS", "FUSIONS", "METRICS", "AdaPrunerConfig", "Compensation", "DsaConfig", "Group",
    "HyWIA", "Plan", "PruneConfig", "PruneReport", "RecoverConfig", "RecoverReport", "Samples", "Scores",
    "SearchConfig",
    "SearchRun", "SearchTexts", "SparseConfig", "SparsePlan", "SparseReport", "Statistics", "Structure", "allocate",
    "calibrate", "compact", "compensate", "dsa_texts", "evaluation_windows", "find_groups", "load", "load_samples",
    "make_plan", "mask", "metric", "ops", "perplexity", "prune", "recover", "save", "score", "search", "search_texts",
    "sparsify", "unfuse_experts",
}  # fmt: skip
OPS = {
    "MOMENTS", "activation_stats", "available_backends", "block_moments", "compact_bytes", "compact_layer",
    "gate_scores", "gather_columns", "gather_rows", "histogram_edges", "kth_value", "kth_value_global", "masked_copy",
    "nm_apply", "nm_mask", "quantile_codes", "select_mask", "select_mask_global", "taylor_scores",
    "taylor_scores_outer", "use_backend", "weight_scores",
}  # fmt: skip
KERNELS = {
    "activation_stats", "block_moments", "gate_scores", "masked_copy", "nm_mask", "quantile_codes", "select",
    "select_global", "taylor_scores", "taylor_scores_outer", "weight_scores",
}  # fmt: skip
# Packages beyond torch, numpy and what these two need themselves.
EXTRAS = (
    "accelerate", "datasets", "gguf", "jinja2", "lm_eval", "matplotlib", "optuna", "peft", "psutil", "rich",
    "safetensors", "scipy", "tokenizers", "transformers", "triton", "typer", "yaml",
)  # fmt: skip
BLOCK_EXTRAS = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_package_has_exactly_these_names():
    assert set(pe.__all__) == NAMES
    assert len(pe.__all__) == len(NAMES)
    assert [name for name in sorted(NAMES) if not hasattr(pe, name)] == []
    assert pe.SearchConfig is pe.AdaPrunerConfig
    assert pe.__version__


def test_the_ops_are_exactly_these():
    ops = import_module("pruneengine.ops")
    assert pe.ops is ops
    assert set(ops.__all__) == OPS
    assert [name for name in sorted(OPS) if not hasattr(ops, name)] == []


def test_the_kernels_are_exactly_these():
    package = import_module("pruneengine.kernels")
    assert {module.name for module in pkgutil.iter_modules(package.__path__)} == KERNELS


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_kernel_can_be_imported(name):
    pytest.importorskip("triton")
    assert isinstance(import_module(f"pruneengine.kernels.{name}"), ModuleType)


def test_the_extension_has_its_path_where_it_is_built():
    native = pytest.importorskip("pruneengine._C")
    assert native.__name__ == "pruneengine._C"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pruneengine.sparse.plan", "SparsePlan"),
        ("pruneengine.data", "load_samples"),
        ("pruneengine.checkpoint", "save"),
        ("pruneengine.export", "export"),
        ("pruneengine.cli", "main"),
    ],
)
def test_paths_of_the_documentation(module, name):
    if module == "pruneengine.cli":
        pytest.importorskip("typer")
    public = getattr(import_module(module), name)
    assert callable(public)
    assert not isinstance(public, ModuleType)
    if name in NAMES:
        assert getattr(pe, name) is public


def test_the_search_is_a_package_and_a_verb():
    assert isinstance(pe.search, ModuleType)
    assert pe.search is import_module("pruneengine.search")
    assert callable(pe.search)


def test_modules_have_names_of_their_own():
    """A function that a package hands on hides a module of the same name: ``import a.b as b`` gives the function."""
    pytest.importorskip("typer")
    import pruneengine.structured.scores.score as module

    assert isinstance(module, ModuleType)
    names = [found.name for found in pkgutil.walk_packages(pe.__path__, "pruneengine.") if "__main__" not in found.name]
    assert len(names) > 150
    hidden = [name for name in names if can_be_imported(name) and isinstance(bound_by_import(name), FunctionType)]
    assert hidden == []


def can_be_imported(name: str) -> bool:
    """Tell a module that lacks a package of an extra from one that does not exist."""
    try:
        import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] == "pruneengine":
            raise
        return False
    return True


def bound_by_import(name: str) -> object:
    """Return the object that ``import name as x`` binds to x."""
    value: object = pe
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_the_command_line_runs_as_a_module(monkeypatch, capsys):
    """As ``python -m pruneengine.cli`` does; tests/cli/test_prune.py starts one for real."""
    pytest.importorskip("typer")
    monkeypatch.setattr(sys, "argv", ["pruneengine", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("pruneengine.cli", run_name="__main__")
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("prune", "search", "recover", "eval", "compare", "export", "bench"))


def test_importing_the_package_needs_torch_and_numpy_only():
    loaded = "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = run_python("-c", f"{BLOCK_EXTRAS}\nimport json, pruneengine, pruneengine.ops\n{loaded}")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)).isdisjoint(EXTRAS)


def test_the_block_of_packages_holds():
    done = run_python("-c", f"{BLOCK_EXTRAS}\nimport safetensors")
    assert "safetensors is blocked" in done.stderr
