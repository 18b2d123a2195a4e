#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  stable-pretraining 0.1.8, lightning 2.6.6.
# Guess:     a library that is installed and not imported does nothing.
# Behaviour: it registers an entry point of Lightning, so that every Trainer made in that
#            environment, by any program, imports it and carries its callbacks: a text progress
#            bar, dumps of environment variables and packages into a cache folder, checkpoints for
#            W&B and Hugging Face, a hardware monitor. Comparing with it in one's own environment
#            changes one's own runs.
# Seen:      a bare Trainer() holds callbacks of stable_pretraining (14 of 17), and the package is
#            among the imported modules, without an import statement.
exec "$(dirname "$0")/run_with" stable-pretraining==0.1.8 lightning==2.6.6 torch==2.14.1 \
    torchvision==0.29.1 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
import logging
import sys
from importlib.metadata import version

import lightning

from expect import expect

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
print(f"lightning {lightning.__version__}, stable-pretraining {version('stable-pretraining')}")
expect("not imported before", "stable_pretraining" not in sys.modules)
trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False)
names = [
    type(callback).__name__
    for callback in trainer.callbacks
    if type(callback).__module__.startswith("stable_pretraining")
]
expect(
    f"{len(names)} of {len(trainer.callbacks)} callbacks: {', '.join(names)}",
    len(names) > 5 and "EnvironmentDumpCallback" in names,
)
expect("imported after", "stable_pretraining" in sys.modules)
PYTHON
