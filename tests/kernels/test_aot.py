"""Compiled code of the Triton kernels, without a GPU: no spills, few registers, wide loads.

The compiler takes a minute of work for all targets together. Triton keeps what it compiled under a hash of the kernel,
of its launch and of the compiler, here in pytest's cache, so that only kernels that changed are compiled again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import forked

pytest.importorskip("triton", reason="triton is not installed")

# Above these a kernel keeps too few warps on an SM of 65536 registers to hide the latency of its loads.
REGISTERS = {
    "activation_stats_kernel": 80,
    "gate_scores_kernel": 80,
    "weight_scores_kernel": 80,
    "taylor_scores_kernel": 160,
    "block_moments_kernel": 168,
    # A matrix product lives in registers (its tile alone takes 128 a thread), and its copies hide their own latency.
    "taylor_scores_outer_kernel": 255,
    "kth_value_kernel": 80,
    "select_mask_kernel": 80,
    "count_digits_kernel": 80,
    "take_digit_kernel": 80,
    "mark_kernel": 64,
    "nm_kernel": 80,
    "codes_kernel": 64,
    "masked_copy_kernel": 48,
}
# Several scores from one read are bound by arithmetic, which fewer warps keep busy.
REGISTERS_OF_SEVERAL = 200
# Bytes a program may have; sm_86 and sm_89 have 99 KiB, so what compiles for sm_80 is to fit there.
SHARED = {"80": 101376, "90": 232448, "gfx942": 65536}
# Narrow loads a kernel may have: a block of the norm vector, the 16 thresholds, numbers of the whole selection; read
# once a program or from the first-level cache.
NARROW = {
    "weight_scores_kernel": 1,
    "block_moments_kernel": 16,
    "count_digits_kernel": 1,
    "take_digit_kernel": 2,
    "mark_kernel": 4,
}


@pytest.fixture(scope="module", params=["80", "90", "gfx942"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("triton") if cache is not None else tmp_path_factory.mktemp("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    script = f"from tests.helpers import aot_compile; aot_compile.main({request.param!r})"
    done = forked.run_script(script, cwd=Path(__file__).parents[2], env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def compiled(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = report["compiled"]
    assert {row["kernel"] for row in rows} == set(REGISTERS)
    return rows


def named(row: dict[str, Any], *keys: str) -> str:
    return " ".join(str(row[key]) for key in ("kernel", "target", "case", *keys))


def test_every_jit_function_is_compiled(report: dict[str, Any]) -> None:
    assert report["uncovered"] == []
    assert {row["kernel"] for row in report["compiled"]} == set(REGISTERS)


def test_everything_compiles_without_spills(compiled: list[dict[str, Any]]) -> None:
    assert [named(row, "error") for row in compiled if "error" in row] == []
    assert [named(row, "spills") for row in compiled if row["spills"]] == []


def test_registers_stay_under_the_cap(compiled: list[dict[str, Any]]) -> None:
    if compiled[0]["target"].startswith("gfx"):
        pytest.skip("the caps are for an NVIDIA register file")
    for row in (row for row in compiled if row["case"].startswith("wide")):
        cap = REGISTERS_OF_SEVERAL if " several " in row["case"] else REGISTERS[row["kernel"]]
        assert row["registers"] <= cap, named(row, "registers")


def test_shared_memory_suffices(compiled: list[dict[str, Any]]) -> None:
    assert [named(row, "shared") for row in compiled if row["shared"] > SHARED[row["target"]]] == []


def test_large_inputs_are_read_with_the_widest_loads(compiled: list[dict[str, Any]]) -> None:
    # On gfx942 a wave has 64 lanes, so a row of a block may leave 8 bytes a lane.
    widest = (
        ("dwordx2", "dwordx4") if compiled[0]["target"].startswith("gfx") else ("v4.b32", "v2.b64", "cp.async 0x10")
    )
    wide = [row for row in compiled if row["case"].startswith("wide")]
    assert len(wide) > 0
    for row in wide:
        narrow = {load: count for load, count in row["loads"].items() if not load.endswith(widest)}
        assert sum(row["loads"].values()) > sum(narrow.values()), named(row, "loads")
        assert sum(narrow.values()) <= NARROW.get(row["kernel"], 0), named(row, "loads")


def test_a_matrix_product_copies_its_operands_past_the_registers(compiled: list[dict[str, Any]]) -> None:
    if compiled[0]["target"].startswith("gfx"):
        pytest.skip("the copies are NVIDIA's")
    products = [
        row
        for row in compiled
        if row["kernel"] == "taylor_scores_outer_kernel" and row["case"].startswith("wide *bf16")
    ]
    assert len(products) > 0
    for row in products:
        assert row["loads"].get("cp.async 0x10", 0) > 0, named(row, "loads")
