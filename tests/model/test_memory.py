# SPDX-License-Identifier: Apache-2.0
"""Memory that is left for a process: the tightest limit of all groups above it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mdft_fast.model.memory_advice import _left_in_groups

GB = 1 << 30
V1 = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes"}
V2 = {"limit": "memory.max", "used": "memory.current"}


def group(folder: Path, names: dict[str, str], limit: object, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names["limit"]).write_text(f"{limit}\n")
    (folder / names["used"]).write_text(f"{used}\n")
    prefix = "total_" if names is V1 else ""
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {cached}\n")


def left(tmp_path: Path, lines: str) -> list[int]:
    (tmp_path / "cgroup").write_text(lines)
    return sorted(_left_in_groups(tmp_path, tmp_path / "mounted"))


def test_version_2_up_to_the_root(tmp_path: Path) -> None:
    """Slurm limits the job, not the step in which a process is."""
    job = tmp_path / "mounted/system.slice/slurmstepd.scope/job_7"
    group(job / "step_0/user/task_0", V2, "max", GB)
    group(job, V2, 4 * GB, 3 * GB, cached=GB // 2)
    assert left(tmp_path, "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n") == [
        3 * GB // 2
    ]
    (job / "memory.high").write_text(str(3 * GB))
    assert min(left(tmp_path, "0::/system.slice/slurmstepd.scope/job_7/step_0\n")) == GB // 2


def test_version_1_has_a_folder_a_controller(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted/memory"
    group(mounted, V1, 2**63 - 4096, 9 * GB)
    group(mounted / "slurm/uid_1/job_7", V1, 2 * GB, GB)
    group(mounted / "slurm/uid_1", V1, 8 * GB, 2 * GB)
    lines = "9:name=systemd:/\n4:cpu,memory:/slurm/uid_1/job_7/step_0\n3:cpuset:/other\n0::/\n"
    assert left(tmp_path, lines)[:2] == [GB, 6 * GB]


@pytest.mark.parametrize("lines", ["", "0::/\n", "0::/../../elsewhere\n", "0::/docker/gone\n", "?"])
def test_a_container_sees_its_own_group_at_the_root(lines: str, tmp_path: Path) -> None:
    group(tmp_path / "mounted", V2, 2 * GB, GB)
    group(tmp_path / "elsewhere", V2, GB, GB)  # outside of what is mounted
    assert left(tmp_path, lines) == [GB]


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert list(_left_in_groups(tmp_path / "none", tmp_path / "none")) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_limit_of_addresses_counts() -> None:
    code = (
        "import resource, torch; from mdft_fast.model import available_memory as a; "
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, -1)); print(a(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 <= int(done.stdout) < 8 * GB
