# SPDX-License-Identifier: MIT
"""Pruning methods, a page each; module `<name>` exports its class as `PRUNER`."""
