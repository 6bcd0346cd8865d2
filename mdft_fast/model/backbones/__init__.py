# SPDX-License-Identifier: Apache-2.0
"""Who builds the module whose weights the pool gives."""
