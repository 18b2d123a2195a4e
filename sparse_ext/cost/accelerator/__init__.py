# SPDX-License-Identifier: MIT
"""A cycle model of a tensor-core accelerator that skips 8x8 blocks (SyncCP, Table 7)."""
