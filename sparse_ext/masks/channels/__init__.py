# SPDX-License-Identifier: MIT
"""Channels that exist together: traced, found constant, removed from the network."""
