# SPDX-License-Identifier: MIT
"""Files that appear whole or not at all, and folders for one program at a time."""
