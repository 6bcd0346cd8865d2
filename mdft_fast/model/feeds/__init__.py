# SPDX-License-Identifier: Apache-2.0
"""Where base and task vectors come from."""
