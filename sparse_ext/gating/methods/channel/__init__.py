# SPDX-License-Identifier: MIT
"""Channel gating: VICReg-Gating and VICReg-Dual (section 11 of the specification)."""
