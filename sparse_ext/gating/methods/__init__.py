# SPDX-License-Identifier: MIT
"""The gating methods, one folder per kind of gate: channels, places, salient channels."""
