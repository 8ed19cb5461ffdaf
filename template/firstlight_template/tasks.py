"""The tasks that a project can start from: one row each. A task's files lie in ``templates/<task>/``.

A file of the project takes a task's own text by ``{% include cookiecutter.task ~ "/data.py" %}``. A new task is a
choice in ``cookiecutter.json``, a row here and a folder with ``default.yaml``, ``data.py``, ``model.py``,
``README.md``, ``test_data.py``, ``test_model.py``, ``test_recipe.py``, the search spaces ``priority_1.yaml`` to
``priority_3.yaml`` and, where there is one, ``baseline.py``.
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
    "blank": Task(
        "A small network on synthetic data, to be replaced by yours (look for `YOUR TURN` in `src/`)",
        "StarterModule",
        "StarterDataModule",
        module_from=".model",
        baseline=False,
    ),
}
