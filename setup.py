# SPDX-License-Identifier: MIT
"""Packaging of solo-learn-sparse: `solo` (the method zoo) and `sparse_ext` (sparse encoders)."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
#: what an installed package keeps a copy of in solo/recipes
COPIED = (
    *(f"scripts/{kind}/**/*.y*ml" for kind in ("pretrain", "linear", "finetune")),
    *(f"scripts/{kind}/**/*.y*ml" for kind in ("sparse", "gating")),
    *(f"zoo/**/*.{kind}" for kind in ("json", "safetensors", "md")),
)

EXTRAS = {
    "dali": ["nvidia-dali-cuda130>=2.0; sys_platform == 'linux'"],
    "umap": ["umap-learn", "matplotlib", "seaborn", "pandas"],
    "h5": ["h5py"],
    "kernels": ["ninja"],
    "channels": ["tifffile"],
    "export": ["onnx", "onnxruntime"],
    "tensorboard": ["tensorboard"],
    "parquet": ["pandas", "pyarrow"],
    "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis", "ruff", "mypy"],
    "docs": ["mkdocs"],
}
EXTRAS["test"] += EXTRAS["dali"] + EXTRAS["umap"] + EXTRAS["h5"] + EXTRAS["channels"]
EXTRAS["all"] = sorted({package for extra in EXTRAS.values() for package in extra})


class WithRecipes(build_py):
    """Puts recipes and the zoo's manifest, which a checkout has at its top, into the package."""

    def run(self):
        """Build, then copy."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for pattern in COPIED:
            for file in HERE.glob(pattern):
                target = Path(self.build_lib, "solo/recipes", file.relative_to(HERE))
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))


setup(
    name="solo-learn-sparse",
    version="0.1.0",
    description="Self-supervised learning of sparse vision encoders, drop-in for solo-learn",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["solo", "solo.*", "sparse_ext", "sparse_ext.*"]),
    cmdclass={"build_py": WithRecipes},
    py_modules=[
        *("main_pretrain", "main_linear", "main_knn", "main_umap", "main_tickets", "main_embed")
    ],
    package_data={
        "solo": ["recipes/**/*.yaml", "data/dataset_subset/*.txt"],
        "sparse_ext": [
            "report/*.html",
            "kernels/cpp/*",
            "kernels/element/cpp/*",
            "kernels/element/libraries/*",
        ],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "lightning>=2.6",
        "timm>=1.0.20",
        "torchmetrics>=1.4",
        "hydra-core>=1.3",
        "omegaconf>=2.3",
        "safetensors>=0.4",
        "filelock>=3.12",
        "jinja2>=3.1",
        "scikit-learn>=1.4",
        "matplotlib>=3.8",
        "wandb>=0.17",
        "tqdm",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "solo-pretrain=main_pretrain:main",
            "solo-linear=main_linear:main",
            "solo-knn=main_knn:main",
            "solo-umap=main_umap:main",
            "solo-tickets=main_tickets:main",
            "solo-embed=main_embed:main",
            "solo-report=sparse_ext.report.__main__:main",
            "solo-export=sparse_ext.export.__main__:main",
            "solo-cost=sparse_ext.cost.__main__:main",
            "solo-prune=sparse_ext.prune.__main__:main",
        ],
        "solo.extensions": ["sparse_ext=sparse_ext.extension:register"],
    },
)
