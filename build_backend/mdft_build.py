# SPDX-License-Identifier: Apache-2.0
"""The PEP 517 backend: setuptools, built against the torch that is already installed.

pip builds in an isolated environment. Naming torch as a build requirement would download one more
torch there, and perhaps another one than the user's. So this backend requires nothing up front:
it looks into the environment that pip installs into, appends its packages at the end of
``sys.path``, and asks pip only for the tools that are missing there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

TORCH_FLOOR = "2.11"  # the stable ABI that csrc/ is written against
TOOLS = {
    "setuptools": "77.0.3",  # the first to read an SPDX license; makes wheels by itself
    "cmake": "3.24",
    "ninja": "1.10",
}
WHEEL_BUILD = Path("build/wheel")  # also named in setup.py


def environment_path() -> list[str]:
    """Says where the target environment's interpreter looks for packages.

    Inside pip's isolation ``sys.path`` hides it, but ``sys.executable`` is that interpreter, and
    ``-E`` makes it forget what pip put into the environment variables.
    """
    command = [sys.executable, "-E", "-c", "import sys; print(*filter(None, sys.path), sep='\\n')"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def use_environment() -> None:
    """Appends the target environment's packages; what pip put into the isolation goes first."""
    sys.path += [path for path in environment_path() if path not in sys.path]
    importlib.invalidate_caches()


def version_of(name: str) -> str | None:
    """Returns the version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def at_least(version: str, floor: str) -> bool:
    """Compares the leading numbers of two versions: ``2.11.0+cu130`` is at least ``2.11``."""
    numbers = [[int(n) for n in re.findall(r"\d+", v.split("+")[0])] for v in (version, floor)]
    return numbers[0] >= numbers[1]


def check_torch() -> None:
    """Stops with one line when the environment has no torch to build against."""
    found = version_of("torch")
    if found is None or not at_least(found, TORCH_FLOOR):
        stop(
            f"mdft_fast: builds against the environment's own torch >= {TORCH_FLOOR}, got "
            f"{found or 'none'}; install it first (pip install torch==2.11.0) and try again"
            " (front ends that hide the environment: --no-build-isolation)"
        )


def stop(message: str) -> NoReturn:
    """Ends the hook; pip shows the message as it stands, without a traceback."""
    sys.exit(message)


def missing_tools() -> list[str]:
    """Lists what pip must add: absent or too old in the environment and on the PATH."""
    missing = []
    for name, floor in TOOLS.items():
        version = version_of(name) or program_version(name)
        if version is None or not at_least(version, floor):
            missing.append(f"{name}>={floor}")
    return missing


def program_version(name: str) -> str | None:
    """Returns the version of a program on the PATH."""
    program = shutil.which(name)
    if program is None:
        return None
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\d+(\.\d+)+", done.stdout)
    return match.group() if done.returncode == 0 and match else None


def build_requires(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Answers get_requires_for_build_wheel and get_requires_for_build_editable."""
    use_environment()
    check_torch()
    return missing_tools()


get_requires_for_build_wheel = build_requires
get_requires_for_build_editable = build_requires


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Asks for setuptools alone: an archive of sources needs no torch."""
    use_environment()
    return [tool for tool in missing_tools() if tool.startswith("setuptools")]


def check_tools(missing: list[str]) -> None:
    """Stops with one line where a front end was told not to bring the tools, or did not."""
    if missing:
        stop(
            f"mdft_fast: without build isolation the environment must have {', '.join(missing)}; "
            f"install them first (pip install {' '.join(repr(tool) for tool in missing)})"
        )


def setuptools_backend() -> Any:
    """Imports the backend that does the work, only once pip has made it importable."""
    use_environment()
    return importlib.import_module("setuptools.build_meta")


def ready_backend() -> Any:
    """As :func:`setuptools_backend`, once all is there that a build needs."""
    use_environment()
    check_torch()
    check_tools(missing_tools())
    return setuptools_backend()


def prepare_metadata_for_build_wheel(*args: Any, **options: Any) -> str:
    """Writes the metadata; see PEP 517."""
    return ready_backend().prepare_metadata_for_build_wheel(*args, **options)


def prepare_metadata_for_build_editable(*args: Any, **options: Any) -> str:
    """Writes the metadata; see PEP 660."""
    return ready_backend().prepare_metadata_for_build_editable(*args, **options)


def build_wheel(*args: Any, **options: Any) -> str:
    """Builds a wheel; see PEP 517."""
    backend = ready_backend()
    # setuptools packs all that it finds there: a module deleted since would come along.
    shutil.rmtree(WHEEL_BUILD, ignore_errors=True)
    return backend.build_wheel(*args, **options)


def build_editable(*args: Any, **options: Any) -> str:
    """Builds in place and links the source tree; see PEP 660."""
    return ready_backend().build_editable(*args, **options)


def build_sdist(*args: Any, **options: Any) -> str:
    """Packs the sources; see PEP 517."""
    check_tools(get_requires_for_build_sdist())
    return setuptools_backend().build_sdist(*args, **options)
