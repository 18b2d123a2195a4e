# SPDX-License-Identifier: MIT
"""What the YAML files under scripts/ share; Hydra finds it as `pkg://solo.recipes`."""
