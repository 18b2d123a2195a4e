# SPDX-License-Identifier: MIT
"""What the YAML files under scripts/ share; Hydra finds it as `pkg://solo.recipes`.

An installed package has copies of scripts/ and zoo/ in here: `place`.
"""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
#: data sets in the order in which a recipe is looked for that no folder is given for
ORDER = ("cifar", "custom", "digits", "imagenet-100", "imagenet")


def place(name: str) -> Path:
    """The folder `scripts` or `zoo`: of the checkout that this package is in, or its copy here."""
    mark = {"scripts": "launch.sh", "zoo": "manifest.json"}[name]
    inside = CHECKOUT / name
    return inside if (inside / mark).is_file() else Path(__file__).parent / name


def named(name: str, kinds: tuple[str, ...]) -> list[Path]:
    """Recipes called `name`, the one that is meant first.

    Args:
        name: of the file, with or without `.yaml`.
        kinds: folders of scripts/, such as `pretrain`.
    """
    stem, scripts = name.removesuffix(".yaml").removesuffix(".yml"), place("scripts")
    found = [f for kind in kinds for f in sorted((scripts / kind).glob(f"*/{stem}.y*ml"))]

    def order(file: Path) -> int:
        folder = file.parent.name
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    return sorted(found, key=order)


def names(kinds: tuple[str, ...]) -> set[str]:
    """Names of all recipes of these kinds."""
    return {file.stem for kind in kinds for file in (place("scripts") / kind).glob("*/*.y*ml")}
