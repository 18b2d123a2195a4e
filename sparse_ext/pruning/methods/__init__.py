# SPDX-License-Identifier: MIT
"""Pruning methods, a page each; `sparse_ext.config.sections.PRUNERS` names them."""
