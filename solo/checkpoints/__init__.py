# SPDX-License-Identifier: MIT
"""Runs and weight files: opened, checked, rebuilt, exported."""
