"""Activations on the CPU without page faults, once the allocator has been taught."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from pruneengine.model.decoder import keep_freed_memory
if {taught}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(20):
        [torch.zeros(6, 2**18) for _ in range(4)]
work()
before = faults()
work()
print(faults() - before)
"""
# Of one of the twenty times that blocks of 24 MiB are filled.
PAGES = 24 * 2**20 // 4096


def page_faults(taught: bool) -> int:
    command = [sys.executable, "-c", COUNT.format(taught=taught)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is what is taught")
def test_freed_memory_is_used_again():
    assert page_faults(taught=True) < PAGES
