"""The tasks that a project can start from: one row each. A task's files lie in ``templates/<task>/``.

A file of the project takes a task's own text by ``{% include cookiecutter.task ~ "/data.py" %}``. A new task is a
choice in ``cookiecutter.json``, a row here and a folder with ``default.yaml``, ``data.py``, ``model.py``,
``README.md``, ``test_data.py``, ``test_model.py``, ``test_recipe.py`` and, where there is one, ``baseline.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What the files that all tasks share must know of one."""

    summary: str  # the first sentence of the README
    module: str  # the LightningModule that the command line builds
    data: str  # the LightningDataModule, in data.py
    module_from: str = "firstlight.modules"
    dependencies: tuple[str, ...] = ()
    digits: bool = False  # has digits.py, scikit-learn's digits under a fixed split
    baseline: bool = True  # has baseline.py, which prints the number to beat
    loss: str = "train/loss"  # a value that is logged at every training step
    ddp: str = "ddp"  # the strategy for a copy of the model on each device


SKLEARN = "scikit-learn>=1.4"
TASKS = {
    "vision": Task(
        "A convolutional network on scikit-learn's handwritten digits (1797 images that come with the package: "
        "no download)",
        "SupervisedModule",
        "DigitsDataModule",
        dependencies=(SKLEARN,),
        digits=True,
    ),
    "contrastive": Task(
        "An encoder that learns from scikit-learn's handwritten digits without a label (they come with the package: no "
        "download)",
        "ContrastiveModule",
        "DigitsDataModule",
        dependencies=(SKLEARN,),
        digits=True,
    ),
    "vae": Task(
        "A variational autoencoder of scikit-learn's handwritten digits (they come with the package: no download)",
        "VAEModule",
        "DigitsDataModule",
        dependencies=(SKLEARN,),
        digits=True,
    ),
    "gan": Task(
        "A generative adversarial network that draws handwritten digits, from scikit-learn's (they come with the "
        "package: no download)",
        "GANModule",
        "DigitsDataModule",
        dependencies=(SKLEARN,),
        digits=True,
        loss="train/loss/generator",
        ddp="ddp_find_unused_parameters_true",  # each backward pass is through one of the two networks
    ),
    "blank": Task(
        "A small network on synthetic data, to be replaced by yours (look for `YOUR TURN` in `src/`)",
        "StarterModule",
        "StarterDataModule",
        module_from=".model",
        baseline=False,
    ),
}
