# SPDX-License-Identifier: MIT
"""The main job on an embedded default: dense and sparse pretraining, evaluation, a report.

`bash scripts/quickstart.sh` makes the environment and starts this package.
"""
