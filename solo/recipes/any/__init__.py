# SPDX-License-Identifier: MIT
"""What recipes for images of your own share, any method of the zoo: hyperparameters and views."""
