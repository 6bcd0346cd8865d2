# SPDX-License-Identifier: Apache-2.0
"""What ``import mdft_fast`` and ``mdft --help`` cost: neither torch nor anything like it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mdft_fast

HEAVY = ["torch", "numpy", "safetensors", "pydantic", "yaml", "jinja2", "matplotlib", "open_clip",
         "timm", "torchvision", "transformers"]  # fmt: skip
OF_THE_PROGRAM = ["jinja2", "matplotlib", "open_clip", "pydantic", "rich", "timm", "torchvision",
                  "typer", "yaml"]  # fmt: skip


def printed(code: str, *arguments: str) -> str:
    """Returns what a fresh Python prints, and on a line of its own what of HEAVY it loaded."""
    code += f"\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_package_loads_nothing() -> None:
    code = "import mdft_fast; assert dir(mdft_fast); print('mdft_fast.app' in sys.modules)"
    assert printed(f"{code}; print('typer' in sys.modules)") == "False\nFalse\n[]\n"


def test_the_library_loads_nothing_of_the_program() -> None:
    # Against `import torch` alone: what torch itself brings is not ours to answer for.
    code = f"""import torch; before = set(sys.modules); import mdft_fast
for name in set(mdft_fast.__all__) - {{"run", "plan", "MemoryPlan"}}: getattr(mdft_fast, name)
print([name for name in {OF_THE_PROGRAM} if name in sys.modules and name not in before])
print(sorted(name for name in sys.modules if name.startswith("mdft_fast.app")))"""
    assert printed(code).startswith("[]\n[]\n")


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["--help"], 0, "Usage:"),
        (["run", "--help"], 0, "Usage:"),
        (["doctor", "--help"], 0, "Usage:"),
        (["--version"], 0, f"mdft_fast {mdft_fast.__version__}"),
        (["run", "a", "--sett", "b"], 2, "No such option"),
        (["run"], 2, "Missing argument"),
        (["runn"], 2, "No such command"),
        (["run", "none.yaml"], 1, "error: none.yaml: not readable: No such file or directory"),
        (["pack", "none.yaml", "to"], 1, "error: none.yaml: not readable: No such file"),
    ],
)
def test_the_command_line_answers_without_torch(
    arguments: list[str], code: int, answer: str
) -> None:
    program = """from mdft_fast.app.cli import main
try:
    main()
except SystemExit as end:
    print("code", end.code or 0)"""
    output = printed(program, *arguments).replace("['pydantic']", "[]")  # typer's own
    assert answer in output
    assert f"code {code}\n[]\n" in output


def test_public_names_are_what_type_checkers_see() -> None:
    stub = ast.parse((Path(mdft_fast.__file__).parent / "__init__.pyi").read_text())
    origin = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(origin) == sorted([*mdft_fast.__all__, "__version__"])
    for name in mdft_fast.__all__:
        room = sys.modules[getattr(mdft_fast, name).__module__]
        assert room.__name__.startswith(origin[name].rpartition(".")[0]), name
    assert set(mdft_fast.__all__) <= set(dir(mdft_fast))


def test_names_and_rooms_are_there_when_asked_for() -> None:
    code = """import pickle
import mdft_fast.app.running, mdft_fast.evaluation, mdft_fast.app.forecast  # hide no function
import mdft_fast
assert mdft_fast.run is mdft_fast.app.running.run
assert mdft_fast.reference.merge and mdft_fast.pool.Head is mdft_fast.Head
for name in mdft_fast.__all__:
    public = getattr(mdft_fast, name)
    assert callable(public), name
    assert pickle.loads(pickle.dumps(public)) is public, name
everything = {}
exec("from mdft_fast import *", everything)
assert set(mdft_fast.__all__) == set(everything) - {"__builtins__"}
try:
    mdft_fast.nothing
except AttributeError as error:
    print(error)
"""
    assert printed(code).startswith("module 'mdft_fast' has no attribute 'nothing'\n")


def test_the_report_needs_no_pictures_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's environment names one that the program's own may lack."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    code = "import mdft_fast.app.report as r; r.write_report; print('matplotlib' in sys.modules)"
    assert printed(code).startswith("False\n")
