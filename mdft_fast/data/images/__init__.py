# SPDX-License-Identifier: Apache-2.0
"""Images: where they lie and how they become pixels."""
