"""The build with and without its tools, the files of the wheel, and nvcc's report on every CUDA kernel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc" / "cuda"
NVCC = shutil.which("nvcc")
REGISTERS = 80  # of a thread: 768 threads, and with them enough loads under way, fit into a multiprocessor


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what setup.py reads, so that no build touches the checkout."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
    for name in ("csrc", "kernels", "pruneengine"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    return tmp_path


def build(tree: Path, mode: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PRUNEENGINE_BUILD": mode, **environment}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def info(tree: Path) -> dict[str, str]:
    return json.loads((tree / "pruneengine" / "_build_info.json").read_text())


def modules(tree: Path) -> list[Path]:
    return list((tree / "pruneengine").glob("_C*.so"))


def test_none_builds_nothing_and_the_reference_still_answers(tree: Path) -> None:
    stale = tree / "pruneengine" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.write_bytes(b"the module of an earlier build")
    done = build(tree, "none")
    assert done.returncode == 0, done.stderr
    assert modules(tree) == []
    assert info(tree)["cpu"] == "PRUNEENGINE_BUILD=none"

    # An editable install beside it would lend its own module.
    script = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
import torch
from pruneengine import ops
print(ops.available_backends()["cpp"])
print(ops.kth_value(torch.tensor([[3.0, 1.0, 2.0]]), 2).item())
"""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["no C++ extension: PRUNEENGINE_BUILD=none", "2.0"], done.stderr


def test_auto_goes_on_without_a_compiler_and_records_why(tree: Path) -> None:
    done = build(tree, "auto", CC="false", CXX="false")
    assert done.returncode == 0, done.stderr
    assert modules(tree) == []
    assert info(tree)["cpu"].startswith("build failed: no working C++ compiler")
    assert "build failed: no working C++ compiler" in done.stdout


def test_cpu_without_a_compiler_is_an_error(tree: Path) -> None:
    done = build(tree, "cpu", CC="false", CXX="false")
    assert done.returncode != 0
    assert "no working C++ compiler" in done.stderr


def test_cuda_without_nvcc_is_an_error(tree: Path) -> None:
    done = build(tree, "cuda", CUDA_HOME=str(tree))
    assert done.returncode != 0
    assert "no nvcc in CUDA_HOME or on PATH" in done.stderr or "no working C++ compiler" in done.stderr


def test_an_unknown_mode_is_an_error_that_names_the_known_ones(tree: Path) -> None:
    done = build(tree, "gpu")
    assert done.returncode != 0
    assert "PRUNEENGINE_BUILD='gpu': expected one of auto, none, cpu, cuda" in done.stderr


def test_the_wheel_holds_every_module_and_data_file(tree: Path) -> None:
    command = [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", "dist"]
    environment = {**os.environ, "PRUNEENGINE_BUILD": "none"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("pruneengine/")}

    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pruneengine").rglob("*.py")}
    kernels = {f"pruneengine/kernels/{path.name}" for path in (ROOT / "kernels" / "triton").glob("*.py")}
    data = {"py.typed", "_build_info.json", "report/page.html", "report/style.css"}
    assert {"pruneengine/__init__.py", "pruneengine/sparse/pruners/pruner.py"} < modules
    assert "pruneengine/kernels/select.py" in kernels
    assert names == modules | kernels | {f"pruneengine/{name}" for name in data}


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "pruneengine").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@cache
def compiled(source: Path, architecture: str) -> tuple[str, str]:
    """Return nvcc's report on a source, and its PTX."""
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    with tempfile.TemporaryDirectory() as scratch:
        keep = ("--keep", "--keep-dir", scratch, "-o", f"{scratch}/kernel.o")
        command = [NVCC, "-O3", "-std=c++17", code, "-Xptxas", "-v", "-c", *keep, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr, (Path(scratch) / source.with_suffix(".ptx").name).read_text()


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("source", sorted(CUDA.glob("*.cu")), ids=lambda path: path.name)
def test_cuda_kernels_compile_without_spills(source: Path, architecture: str) -> None:
    report, _ = compiled(source, architecture)
    kernels = re.findall(r"Compiling entry function '(\w+)'", report)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert kernels, report
    assert frames == [("0", "0", "0")] * len(kernels), report
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    assert len(registers) == len(kernels)
    assert max(registers) <= REGISTERS, report


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
@pytest.mark.parametrize(
    ("name", "accesses"),
    [
        ("gather.cu", ["ld.global.v4", "st.global.v4"]),
        ("select.cu", ["ld.global.v4", "st.global.v2", "st.shared.v4"]),
        ("select_global.cu", ["ld.global.v4", "st.global.v2"]),
    ],
)
def test_cuda_kernels_load_and_store_wide_words(name: str, accesses: list[str]) -> None:
    """In PTX, which names the address space, too: a generic access would be slower than a global one."""
    _, code = compiled(CUDA / name, "80")
    for access in accesses:
        assert access in code
    assert re.findall(r"\b(?:ld|st)\.[vbfsu]\d", code) == []
