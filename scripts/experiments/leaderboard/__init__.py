# SPDX-License-Identifier: MIT
"""A comparison that anyone can repeat: every method, several seeds, an error bar on every figure.

`bash scripts/experiments/leaderboard.sh digits` starts this package; see `docs/results.md` for
what came out.
"""
