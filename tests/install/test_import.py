# SPDX-License-Identifier: Apache-2.0
"""What ``import mdft_fast`` costs: torch, numpy and safetensors, nothing else."""

import subprocess
import sys

LATER = [
    "jinja2",
    "matplotlib",
    "open_clip",
    "pydantic",
    "rich",
    "timm",
    "torchvision",
    "typer",
    "yaml",
]


def test_import_loads_only_what_it_needs() -> None:
    # Against `import torch` alone: what torch itself brings is not ours to answer for.
    code = (
        "import sys, torch; before = set(sys.modules); import mdft_fast\n"
        f"print([name for name in {LATER!r} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
