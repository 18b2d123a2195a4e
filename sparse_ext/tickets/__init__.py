# SPDX-License-Identifier: MIT
"""Tickets: iterative magnitude pruning of any method, and what its masks are worth (Caron et al.).

Importing this does not import torch.
"""
