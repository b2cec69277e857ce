"""Shared by every test: Triton runs interpreted where there is no GPU, and tests that need one are skipped there.

Fixtures of files import what they need themselves: most tests want neither a tokenizer nor a model.

A test that shows a capability of a family (``@pytest.mark.shows("search")``, the family as its parameter ``name``) says
both in its report, from which tests/family_matrix.py makes a table.
"""

import os

import pytest
import torch

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
