# SPDX-License-Identifier: MIT
"""Where images and labels come from."""
