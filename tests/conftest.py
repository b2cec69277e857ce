"""Shared by every test: Triton runs interpreted where there is no GPU, and tests that need one are skipped there.

Fixtures of files import what they need themselves: most tests want neither a tokenizer nor a model.

Tests run in several workers at once (``make test``). Each has one thread, a cache of its own for the modelling files of
checkpoints, and a parent for child processes (:mod:`tests.helpers.forked`).

A test that shows a capability of a family (``@pytest.mark.shows("search")``, the family as its parameter ``name``) says
both in its report, from which tests/helpers/family_matrix.py makes a table.
"""

import gc
import os
import tempfile

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER is not None:
    # Before torch is imported; children inherit it.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
# transformers copies modelling files there by the name of their folder; two workers would write the same file.
MODULES = tempfile.TemporaryDirectory(prefix="hf-modules-")
os.environ["HF_MODULES_CACHE"] = MODULES.name

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.helpers import forked  # noqa: E402

if WORKER is not None:
    torch.set_num_threads(1)
HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Triton reads this once, at the first @triton.jit.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("shows"):
            item.user_properties += [("shows", mark.args[0]), ("family", item.callspec.params["name"])]
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    # Hundreds of thousands of objects of imported modules, which every collection would look through again.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    # A worker ends without the clean-up of Python's exit.
    MODULES.cleanup()


@pytest.fixture(scope="session", autouse=True)
def forked_children():
    # A parent that has looked for GPUs cannot hand them on to forked children.
    switch = forked.Switch(not HAS_GPU)
    with pytest.MonkeyPatch.context() as patch:
        forked.replace_children(patch, switch)
        yield switch


@pytest.fixture(autouse=True)
def fresh_children(request, forked_children, monkeypatch):
    """Let the package start its own processes in tests with the mark ``fresh_process``."""
    if "fresh_process" in request.keywords:
        monkeypatch.setattr(forked_children, "forks", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model folder with a byte-level tokenizer, and a text file beside it."""
    from tests.helpers.tiny_folder import write_folder

    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def texts(folder):
    """The same with text to search on and text to report on: no run of 32 tokens is in both."""
    from tests.helpers.tiny_folder import write_texts

    return write_texts(folder)
