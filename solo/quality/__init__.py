# SPDX-License-Identifier: MIT
"""Quality of encoders without labels: the measures, their log while training, a program."""

from solo.quality.measures import alpha_req, lidar, rankme

__all__ = ["alpha_req", "lidar", "rankme"]
