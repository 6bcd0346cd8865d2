# SPDX-License-Identifier: Apache-2.0
"""The gate on the GPU's machine code sees what it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.scripts import script

ROOT = Path(__file__).parent.parent.parent
LIBRARY = ROOT / "mdft_fast" / "lib" / "libmdft_ops_cuda.so"
MERGE = "_ZN4mdft4cuda6kernelINS0_11MergeKernelIffLi4EEEEEvNT_4ArgsE"


@pytest.fixture(scope="module")
def check_sass() -> Any:
    return script("scripts/check_sass.py")


def listing(*operations: str, of: str = MERGE) -> str:
    lines = [f"  /*{i:04x}*/  {text} ;" for i, text in enumerate(operations)]
    return "\n".join(["arch = sm_90a", f"  Function : {of}", *lines])


MERGE_INT8 = "_ZN4mdft4cuda6kernelINS0_11MergeKernelIafLi8EEEEEvNT_4ArgsE"
MERGE_INT4 = "_ZN4mdft4cuda6kernelINS0_11MergeKernelINS_8Int4PairEfLi16EEEEEvNT_4ArgsE"
MERGE_INT4_SINGLY = MERGE_INT4.replace("Li16E", "Li2E")  # may spread its loads
COLUMN, WIDE, LAMBDA, SUM = "LDG.E R1, [R2.64]", "LDG.E.EF.128 R4", "@P0 LDG.E R3", "FFMA R4, R5"
GOOD = [COLUMN, *[WIDE] * 9, *[LAMBDA] * 8, *[SUM] * 32]
BODIES: dict[str, tuple[list[str], str]] = {
    "good": ([*GOOD, "@P0 BRA 0x10", *GOOD], ""),
    "spread": ([COLUMN, *[WIDE, WIDE, LAMBDA, LAMBDA, SUM] * 9], "spread: 2 before the first sum"),
    "waits": ([COLUMN, *[LAMBDA] * 8, *[WIDE] * 9, *[SUM] * 32] * 2, "wait for the column"),
    "spilled": ([*GOOD, "STL [R1], R5", *GOOD, "LDL.LU R5, [R1]"], "2 accesses to local memory"),
}


CODES, BASE = "LDG.E.EF.64 R4", [WIDE] * 4
GOOD_CODES = [COLUMN, *[CODES] * 8, *BASE, *[LAMBDA] * 16, *[SUM] * 64]
BODIES_OF_CODES: dict[str, tuple[list[str], str]] = {
    "good": ([*GOOD_CODES, "@P0 BRA 0x10", *GOOD_CODES], ""),
    "spread": ([COLUMN, *BASE, *[CODES, LAMBDA, LAMBDA, SUM] * 9], "spread: 1 before the first"),
    "base alone": ([COLUMN, *BASE, *BASE, *[LAMBDA] * 8, SUM] * 2, "spread: 0 before the first"),
    "waits": ([COLUMN, *[LAMBDA] * 8, *[CODES] * 8, *[SUM] * 9] * 2, "wait for the column"),
}


@pytest.mark.parametrize(
    ("kernel", "body", "wanted"),
    [
        *((MERGE, *case) for case in BODIES.values()),
        *(
            (kernel, *case)
            for case in BODIES_OF_CODES.values()
            for kernel in (MERGE_INT8, MERGE_INT4)
        ),
    ],
)
def test_sees_loads_that_are_not_together(
    kernel: str, body: list[str], wanted: str, check_sass: Any
) -> None:
    ((architecture, name, operations),) = check_sass.kernels(listing(*body, of=kernel))
    assert (architecture, name) == ("sm_90a", kernel)
    found = " ".join(check_sass.problems(name, operations))
    assert wanted in found
    assert bool(wanted) == bool(found)
    assert kernel == MERGE or not check_sass.problems(MERGE_INT4_SINGLY, operations)


def test_says_why_it_was_skipped(
    check_sass: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_sass.main(["no/such/library.so"]) == 0
    assert "nvcc absent" in capsys.readouterr().out
    monkeypatch.setattr(check_sass, "cuobjdump", lambda: None)
    assert check_sass.main([__file__]) == 0
    assert "no cuobjdump" in capsys.readouterr().out


def test_passes_on_what_was_built(check_sass: Any) -> None:
    if not LIBRARY.exists():
        pytest.skip("no CUDA library was built")
    if check_sass.cuobjdump() is None:
        pytest.skip("no cuobjdump to read it with")
    assert check_sass.main([str(LIBRARY)]) == 0
