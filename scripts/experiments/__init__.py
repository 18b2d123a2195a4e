# SPDX-License-Identifier: MIT
"""Series of runs that are started from a checkout: the quickstart, the tables of the papers."""
