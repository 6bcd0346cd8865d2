# SPDX-License-Identifier: Apache-2.0
"""The program: ``mdft``. The library never imports it."""
