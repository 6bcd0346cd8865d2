# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: ``python benchmarks/run.py kernels step``, or ``pytest benchmarks``."""
