# SPDX-License-Identifier: MIT
"""The tables of the papers: what each row trains, its programs, and finished runs beside the
printed figures. `scripts/sparse/<dataset>/table4.sh ROW` runs a row.
"""
