# SPDX-License-Identifier: MIT
"""The only Lightning glue of sparse training: the callback and what it needs of a run."""
