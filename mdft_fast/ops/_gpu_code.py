# SPDX-License-Identifier: Apache-2.0
"""Whether the CUDA library holds code for a GPU: without, a launch fails with no word of why."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from mdft_fast.errors import MdftError, need

# An entry of CMAKE_CUDA_ARCHITECTURES: "90a-real" is machine code, "90-virtual" PTX, "90" both.
_ENTRY = re.compile(r"(\d+)([af]?)(-real|-virtual)?")


def runs_on(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Returns whether code for these architectures runs on a GPU.

    Machine code runs on the same major capability from its minor one on, PTX on all from its own
    on; what is specific to an architecture ("90a") or a family ("100f") there alone.
    """
    device = 10 * capability[0] + capability[1]
    for entry in architectures:
        found = _ENTRY.fullmatch(entry)
        if found is None:
            continue
        made, kind, form = int(found[1]), found[2], found[3]
        same_family = made // 10 == capability[0] and made <= device
        if kind == "a":
            good = made == device
        elif kind == "f" or form == "-real":
            good = same_family
        else:
            good = made <= device
        if good:
            return True
    return False


def why_unusable(built_by: str | None, torch_cuda: str | None) -> str:
    """Returns why a library of one CUDA does not go with torch's; nothing where it does.

    As torch has it for extensions: one major version is one CUDA.
    """
    if built_by is None or torch_cuda is None:
        return ""
    if built_by.split(".")[0] == torch_cuda.split(".")[0]:
        return ""
    return f"libmdft_ops_cuda.so is of CUDA {built_by}, this torch of CUDA {torch_cuda}; build anew"


def built_for() -> tuple[str | None, list[str]]:
    """Returns nvcc's version and the architectures of the build."""
    try:
        info = need("mdft_fast._native").build_info()
    except MdftError:  # the facts about the build were not built
        return None, []
    return info["nvcc_version"], list(info["cuda_architectures"])


_found: dict[int, str] = {}  # what was found out about each GPU


def why_no_code(index: int | None) -> str:
    """Returns why kernels cannot run on a GPU; nothing where they can, or where there is none."""
    if not torch.cuda.is_available():  # fakes
        return ""
    index = torch.cuda.current_device() if index is None else index
    if index not in _found:
        _found[index] = _look(index)
    return _found[index]


def _look(index: int) -> str:
    _, architectures = built_for()
    capability = torch.cuda.get_device_capability(index)
    if not architectures or runs_on(architectures, capability):
        return ""
    number = f"{capability[0]}.{capability[1]}"
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {number}, built were "
        f"{' '.join(architectures)}; install with MDFT_CUDA_ARCHITECTURES="
        f"{number.replace('.', '')}"
    )
