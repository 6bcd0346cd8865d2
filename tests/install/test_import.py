# SPDX-License-Identifier: Apache-2.0
"""What ``import mdft_fast`` costs: nothing; its names: torch, numpy and safetensors."""

import subprocess
import sys

import pytest

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


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_only_what_it_needs() -> None:
    # Against `import torch` alone: what torch itself brings is not ours to answer for.
    code = (
        "import sys, torch; before = set(sys.modules); import mdft_fast; mdft_fast.merge\n"
        f"print([name for name in {LATER!r} if name in sys.modules and name not in before])"
    )
    assert printed(code) == "[]"


@pytest.mark.parametrize("name", ["run", "evaluate"])
def test_a_function_is_not_hidden_by_the_module_of_its_name(name: str) -> None:
    code = f"import mdft_fast.{name}; from mdft_fast import {name}; print(callable({name}))"
    assert printed(code) == "True"


def test_every_public_name_is_there_and_no_other() -> None:
    code = """
import mdft_fast
assert set(mdft_fast.__all__) <= set(dir(mdft_fast))
everything = {}
exec("from mdft_fast import *", everything)
assert set(mdft_fast.__all__) <= set(everything)
assert mdft_fast.reference.merge
try:
    mdft_fast.nothing
except AttributeError as error:
    print(error)
"""
    assert printed(code) == "module 'mdft_fast' has no attribute 'nothing'"
