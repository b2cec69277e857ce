"""Build of the packages and of the C++/CUDA extension ``pruneengine._C``; everything else is in pyproject.toml.

``PRUNEENGINE_BUILD`` decides what is compiled: ``auto`` (default: C++ where a compiler works, CUDA where nvcc is found,
and no failure where they are missing), ``none``, ``cpu`` or ``cuda`` (errors where the tool is missing). The
outcome and its reason are recorded in ``pruneengine/_build_info.json`` for :func:`pruneengine.ops.available_backends`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

MODES = ("auto", "none", "cpu", "cuda")
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wno-psabi", "-Wno-maybe-uninitialized"]
NVCC_FLAGS = [
    *("-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
    *("-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=[sm_90,compute_90]"),
]
ROOT = Path(__file__).parent


class ToolMissingError(PlatformError):
    """A compiler is missing or does not work; setuptools goes on without an optional extension."""


def build_mode() -> str:
    """Return the mode of ``PRUNEENGINE_BUILD``; raise ValueError for an unknown one."""
    mode = os.environ.get("PRUNEENGINE_BUILD", "auto")
    if mode not in MODES:
        raise ValueError(f"PRUNEENGINE_BUILD={mode!r}: expected one of {', '.join(MODES)}")
    return mode


def sources(folder: str, suffix: str) -> list[str]:
    """Return the files of csrc/<folder> and its subfolders with the given suffix."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).rglob(f"*{suffix}"))


def packages() -> list[str]:
    """Return every folder of pruneengine with an __init__.py, and the kernels, which live outside of it."""
    files = sorted((ROOT / "pruneengine").rglob("__init__.py"))
    names = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    return sorted(names | {"pruneengine.kernels"})


def nvcc() -> str | None:
    """Return the path of nvcc in CUDA_HOME, or on PATH if that is not set; None where there is none."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def cudart_folder(compiler: str) -> str:
    """Return the folder of libcudart_static.a, from the library paths that nvcc itself would link with."""
    plan = subprocess.run([compiler, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    for folder in re.findall(r'"-L([^"]+)"', plan):
        if Path(folder, "libcudart_static.a").is_file():
            return folder
    raise ToolMissingError(f"{compiler} knows no folder with libcudart_static.a")


def pybind11_include() -> str:
    """Return the folder of pybind11's headers."""
    try:
        import pybind11
    except ImportError:
        raise ToolMissingError("pybind11 is not installed, and the build is not isolated") from None
    return pybind11.get_include()


class BuildExtension(build_ext):
    """Build step that compiles what the mode asks for and the machine can, and records the outcome."""

    def run(self) -> None:
        """Build the extension by the mode and write ``_build_info.json``."""
        self.mode = build_mode()
        self.info = {"mode": self.mode, "cpu": "PRUNEENGINE_BUILD=none", "cuda": "PRUNEENGINE_BUILD=none"}
        if self.mode == "none":
            self.extensions = []
        else:
            self.extensions[0].optional = self.mode == "auto"
            self.force = True  # the outcome depends on the mode and the tools, not only on the sources' age
            super().run()
        print(f"pruneengine: C++ extension: {self.info['cpu']}; CUDA part: {self.info['cuda']}")
        if self.info["cpu"] != "built":
            self.drop_module()
        folders = [Path(self.build_lib, "pruneengine")] + [ROOT / "pruneengine"] * bool(self.inplace)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build_info.json").write_text(json.dumps(self.info, indent=2) + "\n")

    def drop_module(self) -> None:
        """Remove the module of an earlier build, which would be shipped or loaded in place of this one."""
        Path(self.get_ext_fullpath("pruneengine._C")).unlink(missing_ok=True)

    def build_extension(self, extension: Extension) -> None:
        """Compile the extension, its CUDA part included where that is possible."""
        try:
            extension.include_dirs.append(pybind11_include())
            openmp = self.compiler_check()
            extension.extra_compile_args += CXX_FLAGS + openmp
            extension.extra_link_args += openmp
            self.add_cuda(extension)
            super().build_extension(extension)
        except Exception as error:
            self.info["cpu"] = self.info["cuda"] = f"build failed: {' '.join(str(error).split())}"
            self.drop_module()
            raise
        self.info["cpu"] = "built"

    def compiler_check(self) -> list[str]:
        """Return the OpenMP flags, after compiling an empty program; [] where the compiler has no OpenMP."""
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "program.cpp")
            program.write_text("#include <cstdint>\nint main() { return 0; }\n")
            for flags in (["-fopenmp"], []):
                try:
                    objects = self.compiler.compile([str(program)], output_dir="/", extra_postargs=CXX_FLAGS + flags)
                    self.compiler.link_executable(objects, f"{folder}/program", extra_postargs=flags)
                    return flags
                except Exception as error:
                    failure = error
        raise ToolMissingError(f"no working C++ compiler ({failure})")

    def add_cuda(self, extension: Extension) -> None:
        """Add the CUDA part; a missing tool is an error in mode cuda only."""
        if self.mode == "cpu":
            self.info["cuda"] = "PRUNEENGINE_BUILD=cpu"
            return
        try:
            self.compile_cuda(extension)
            self.info["cuda"] = "built"
        except ToolMissingError as error:
            if self.mode == "cuda":
                raise
            self.info["cuda"] = str(error)

    def compile_cuda(self, extension: Extension) -> None:
        """Compile every .cu file with nvcc and link it with the static runtime."""
        compiler = nvcc()
        if compiler is None:
            raise ToolMissingError("no nvcc in CUDA_HOME or on PATH")
        folder = cudart_folder(compiler)
        objects = []
        for source in sources("cuda", ".cu"):
            target = Path(self.build_temp, source).with_suffix(".cu.o")
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [compiler, *NVCC_FLAGS, "-c", source, "-o", str(target)]
            print(" ".join(command))
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise ToolMissingError(f"nvcc fails on {source}: {done.stderr.strip()[:300]}")
            objects.append(str(target))
        extension.extra_objects += objects
        extension.define_macros.append(("PRUNEENGINE_CUDA", "1"))
        # The static runtime loads the driver on first use, so the module imports on machines without one.
        extension.extra_link_args += [f"-L{folder}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


setup(
    version="0.1.0",
    packages=packages(),
    package_dir={"pruneengine.kernels": "kernels/triton"},
    package_data={"pruneengine": ["_build_info.json", "py.typed"], "pruneengine.report": ["page.html", "style.css"]},
    ext_modules=[
        Extension(
            "pruneengine._C",
            ["csrc/bindings.cpp", *sources("cpu", ".cpp")],
            depends=[path for path in sources("", ".*") if "bindings" not in path],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
