# SPDX-License-Identifier: Apache-2.0
"""Runs a compiler and keeps what it said in ``<object>.log``, so that gates can read it later.

CMake puts this before every nvcc command. What ptxas reports about registers and spills is
otherwise lost as soon as an incremental build skips the file.
"""

import subprocess
import sys
from pathlib import Path

command = sys.argv[1:]
done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
sys.stdout.write(done.stdout)
if "-o" in command:
    output = Path(command[command.index("-o") + 1])
    output.with_name(output.name + ".log").write_text(done.stdout, encoding="utf-8")
sys.exit(done.returncode)
