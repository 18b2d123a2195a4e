# SPDX-License-Identifier: MIT
"""Convolutions and linear layers that compute their kept weights only, one by one, on the CPU."""
