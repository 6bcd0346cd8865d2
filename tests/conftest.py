# SPDX-License-Identifier: Apache-2.0
"""What every test may ask for: a device, the real pool; and the rules of the whole session."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # for `from tests.tolerance import ...`; an installed mdft_fast wins

# A GPU's machine may lack them; the annotations' names are then plain tensors.
if importlib.util.find_spec("jaxtyping") and importlib.util.find_spec("beartype"):
    from tests.shapes import execute_annotations  # noqa: I001 - first: it loads jaxtyping
    from mdft_fast import arena, ops

    for room in (arena, ops):
        execute_annotations(room)

# A native kernel that is missing is an error here, not a warning: else tests would compare the
# reference with itself.
os.environ["MDFT_STRICT"] = "1"

from tests.world import World, make_world  # noqa: E402  (it takes the checked functions)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder, by its path from there."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


DEVICES = [pytest.param("cpu")]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.cuda))

# Same examples on every run: a red test is red for everyone. More of them: --hypothesis-profile.
settings.register_profile(
    "quick",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", parent=settings.get_profile("quick"), max_examples=1000)
settings.load_profile("quick")


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that this machine has."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def real_pool() -> Path:
    """The folder of a real pool: a base and eight fine-tuned models, beside the repository."""
    folder = ROOT.parent / "shared" / "pool"
    if not (folder / "base.safetensors").exists():
        pytest.skip("needs the real pool in ../shared/pool, beside the repository")
    return folder


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, not made yet."""
    folder = tmp_path_factory.mktemp("own") / "cache"
    monkeypatch.setenv("MDFT_CACHE", str(folder))
    return folder


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads; puts it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
