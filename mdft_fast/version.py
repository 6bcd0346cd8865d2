# SPDX-License-Identifier: Apache-2.0
"""The version, where the package and the program can read it."""

__version__ = "0.1.0"
