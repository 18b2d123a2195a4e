# SPDX-License-Identifier: MIT
"""What a weight is worth: by size, by gradients, at random, from the first batch."""
