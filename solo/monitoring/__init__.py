# SPDX-License-Identifier: MIT
"""What a run tells: loggers, progress, profiles, step metrics, guards."""
