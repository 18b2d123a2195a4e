# SPDX-License-Identifier: MIT
"""Gated encoders: networks that decide per image what they compute (`+gating=NAME`)."""
