# SPDX-License-Identifier: Apache-2.0
"""The build backend: takes the environment's torch, asks for nothing that is there."""

import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import script

ROOT = Path(__file__).resolve().parents[2]

# Stands in for the project's own: says what it was given instead of compiling for half a minute.
CMAKE_STAND_IN = """
cmake_minimum_required(VERSION 3.24)
project(stand_in LANGUAGES NONE)
file(WRITE "${MDFT_PACKAGE_DIR}/lib/torch_root.txt" "${MDFT_TORCH_ROOT}")
"""


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    return script("build_backend/mdft_build.py")


def ask(hook: str, packages: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Calls a hook as pip does: isolated, seeing only the named packages and an empty PATH."""
    for name, version in packages.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n", encoding="utf-8")
    code = (
        f"import sys; sys.path.append({str(ROOT / 'build_backend')!r}); import mdft_build\n"
        f"mdft_build.environment_path = lambda: [{str(folder)!r}]\n"
        f"print(mdft_build.{hook}())"
    )
    # -S: without this environment's own site-packages, and so without its torch.
    command = [sys.executable, "-I", "-S", "-c", code]
    environment = {**os.environ, "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("version", "floor", "enough"),
    [
        ("2.11.0", "2.11", True),
        ("2.11.0+cu130", "2.11", True),
        ("2.11", "2.11", True),
        ("2.12.0a0+git1234", "2.11", True),
        ("3.0", "2.11", True),
        ("2.9.1", "2.11", False),
        ("2.10.0+cu999", "2.11", False),
        ("65.5.0", "77.0.3", False),
    ],
)
def test_versions_are_compared_as_numbers(
    backend: ModuleType, version: str, floor: str, enough: bool
) -> None:
    assert backend.at_least(version, floor) is enough


@pytest.mark.parametrize(
    "hook", ["get_requires_for_build_editable", "get_requires_for_build_wheel", "check_torch"]
)
def test_no_torch_is_one_line_that_says_what_to_install(tmp_path: Path, hook: str) -> None:
    done = ask(hook, {}, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "got none" in done.stderr
    assert "pip install torch==2.11.0" in done.stderr


def test_an_old_torch_is_refused_by_its_version(tmp_path: Path) -> None:
    done = ask("get_requires_for_build_wheel", {"torch": "2.10.0"}, tmp_path)
    assert done.returncode == 1
    assert ">= 2.11, got 2.10.0" in done.stderr


def test_asks_only_for_what_is_missing_by_version(tmp_path: Path) -> None:
    there = {"torch": "2.11.0+cu130", "setuptools": "65.5.0", "cmake": "4.1.0"}
    done = ask("get_requires_for_build_editable", there, tmp_path)
    assert done.stdout.strip() == "['setuptools>=77.0.3', 'ninja>=1.10']", done.stderr


def test_asks_for_nothing_when_all_is_there(tmp_path: Path) -> None:
    there = {"torch": "2.12.0", "setuptools": "81.0.0", "cmake": "3.25.1", "ninja": "1.13"}
    done = ask("get_requires_for_build_wheel", there, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_source_archive_needs_no_torch(tmp_path: Path) -> None:
    done = ask("get_requires_for_build_sdist", {"setuptools": "81.0.0"}, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("hook", "named"),
    [
        ("build_wheel", ["setuptools>=77.0.3", "ninja>=1.10"]),
        ("prepare_metadata_for_build_editable", ["setuptools>=77.0.3", "ninja>=1.10"]),
        ("build_sdist", ["setuptools>=77.0.3"]),
    ],
)
def test_without_isolation_the_missing_tools_are_named(
    hook: str, named: list[str], tmp_path: Path
) -> None:
    there = {"torch": "2.11.0", "setuptools": "65.5.0", "cmake": "4.1.0"}
    done = ask(hook, there, tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"must have {', '.join(named)}; install them first (pip install" in line


def test_sees_the_environment_behind_an_isolated_path(backend: ModuleType) -> None:
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    assert str(Path(torch.origin).parents[1]) in backend.environment_path()


@pytest.fixture(scope="module")
def source(backend: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as pip sees it, but for what it compiles."""
    if backend.missing_tools():
        pytest.skip(f"this environment lacks {backend.missing_tools()}, and no index is used here")
    source = tmp_path_factory.mktemp("project") / "source"
    shutil.copytree(ROOT / "build_backend", source / "build_backend")
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").touch()
    (source / "CMakeLists.txt").write_text(CMAKE_STAND_IN, encoding="utf-8")
    (source / "mdft_fast").mkdir()
    (source / "mdft_fast/__init__.py").touch()
    return source


def borrow(folder: Path, *without: str) -> Path:
    """Makes a new environment of this one's packages; pip may add to it but not change them."""
    venv.create(folder / "environment")
    hidden = ("mdft_fast", "__editable__", *without)
    borrowed = []
    for site in (Path(path) for path in sys.path if path.endswith("-packages")):
        mirror = folder / f"borrowed{len(borrowed)}"
        mirror.mkdir()
        for entry in site.iterdir():
            if not entry.name.startswith(hidden):
                (mirror / entry.name).symlink_to(entry)
        borrowed.append(str(mirror))
    site_packages = next(folder.glob("environment/lib/python*/site-packages"))
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return folder / "environment/bin/python"


def install(python: Path, source: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Installs with every dependency resolved; without an index, what is missing is an error."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    command = [*pip, "install", "--no-index", *more, "--editable", str(source)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull  # nothing of the machine's: no links, no index
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_pip_install_keeps_the_environments_torch(source: Path, tmp_path: Path) -> None:
    python = borrow(tmp_path, "torchvision")  # an extra's, which the base must do without
    report = tmp_path / "report.json"
    done = install(python, source, "--report", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    assert [item["metadata"]["name"] for item in installed] == ["mdft-fast"]

    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    built_with = (source / "mdft_fast/lib/torch_root.txt").read_text(encoding="utf-8")
    assert Path(built_with).resolve() == Path(torch.origin).resolve().parent
    code = "import importlib.metadata as m; print(m.version('torch'), m.version('mdft-fast'))"
    versions = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert versions.stdout.split() == [importlib.metadata.version("torch"), "0.1.0"]


def test_a_build_folder_of_another_place_is_made_anew(source: Path, tmp_path: Path) -> None:
    """A renamed checkout, or one that was copied into an image with its build folder."""
    moved = tmp_path / "moved, (it's [2])"
    shutil.copytree(source, moved, ignore=shutil.ignore_patterns("build"))
    (package,) = moved.glob("build*")  # the backend's; no build folder came along
    assert package.name == "build_backend"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = functools.partial(
        subprocess.run, command, capture_output=True, text=True, env=environment, check=False
    )
    assert run(cwd=moved).returncode == 0
    moved = moved.rename(tmp_path / "renamed")
    done = run(cwd=moved)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not fit any more; building anew" in done.stdout
    (moved / "CMakeLists.txt").write_text("message(FATAL_ERROR no)", encoding="utf-8")
    done = run(cwd=moved)
    assert done.returncode != 0
    assert "the native build failed; cmake's words above say why" in done.stderr
    assert "Traceback" not in done.stderr


def test_pip_would_fetch_what_is_missing(source: Path, tmp_path: Path) -> None:
    """The test above could fail: pip does look for every dependency."""
    done = install(borrow(tmp_path, "safetensors"), source, "--dry-run")
    assert done.returncode != 0
    assert "No matching distribution found for safetensors" in done.stderr
