# SPDX-License-Identifier: MIT
"""The one helper of the findings: say what was seen, and fail once it is no longer so."""

import sys


def expect(statement: str, holds: bool) -> None:
    """Print `statement`; end the script with status 1 unless it holds."""
    print(f"{'seen' if holds else 'CHANGED'}: {statement}", flush=True)
    if not holds:
        sys.exit(1)
