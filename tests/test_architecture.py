"""What may know what, where import-linter cannot see it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "kernels" / "triton").glob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"})


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_import_torch_and_triton_alone(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module in {p.stem for p in KERNELS}
            names.add((node.module or "").split(".")[0] if node.level == 0 else "torch")
    assert names <= {"torch", "triton", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: p.name)
def test_native_sources_are_free_of_torch(path):
    includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
    assert not any(word in line for line in includes for word in ("torch", "ATen", "c10"))


def test_only_the_bindings_know_python():
    assert [p.name for p in NATIVE if "pybind11" in p.read_text()] == ["bindings.cpp"]


def test_no_package_named_kernels_shadows_hugging_face():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_importing_the_package_needs_torch_and_numpy_only():
    extras = ["transformers", "datasets", "triton", "safetensors", "peft", "optuna", "typer", "rich", "yaml", "gguf"]
    block = f"import sys; sys.modules.update(dict.fromkeys({extras!r}))"
    code = f"{block}; import pruneengine, pruneengine.ops; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr
