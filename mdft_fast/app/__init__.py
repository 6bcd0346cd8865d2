# SPDX-License-Identifier: Apache-2.0
"""The program: ``mdft``. The library never imports it; its rooms load when first asked for."""

from mdft_fast.late_imports import late_names

__getattr__, __dir__, __all__ = late_names(__name__, {})
