# SPDX-License-Identifier: Apache-2.0
"""What a run would take, told before anything is loaded."""

from mdft_fast.app.forecast.live_bytes import LiveBytes
from mdft_fast.app.forecast.memory_plan import MemoryPlan, explained, plan, size
from mdft_fast.app.forecast.step_forecast import Subject, forecast
from mdft_fast.app.forecast.verification import verify

__all__ = ["LiveBytes", "MemoryPlan", "Subject", "explained", "forecast", "plan", "size", "verify"]
