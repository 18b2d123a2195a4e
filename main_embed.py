# SPDX-License-Identifier: MIT
"""Features of a folder of images: `python3 main_embed.py RUN FOLDER -o features.npy`."""

import sys

from solo.programs.embed import main as embed
from sparse_ext.extension import register


def main() -> int:
    """Entry point: also of the console command solo-embed."""
    register()
    return embed()


if __name__ == "__main__":
    sys.exit(main())
