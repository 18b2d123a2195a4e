# SPDX-License-Identifier: MIT
"""Code that needs a checkout: launchers, not library."""
