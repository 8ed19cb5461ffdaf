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
    metric: str  # the logged value that says how good it is
    higher_is_better: bool
    goal: float | None = None  # what the metric must reach; None: better than the baseline is enough
    module_from: str = "firstlight.modules"
    dependencies: tuple[str, ...] = ()
    digits: bool = False  # has digits.py, scikit-learn's digits under a fixed split
    baseline: bool = True  # has baseline.py, which prints the number to beat, last on its line
    loss: str = "train/loss"  # a value that is logged at every training step
    judged_by: str = ""  # what a search maximizes where no checkpoint is chosen by a value
    ddp: str = "ddp"  # the strategy for a copy of the model on each device

    def reached(self, value: float, baseline: float | None) -> bool:
        """Whether ``value`` of the metric is as good as promised: at the goal, and better than the baseline."""
        sign = 1 if self.higher_is_better else -1
        good = self.goal is None or sign * value >= sign * self.goal
        return good and (baseline is None or sign * value > sign * baseline)


SKLEARN = "scikit-learn>=1.4"
TASKS = {
    "vision": Task(
        "A convolutional network on scikit-learn's handwritten digits (1797 images that come with the package: "
        "no download)",
        "SupervisedModule",
        "DigitsDataModule",
        metric="test/accuracy",
        higher_is_better=True,
        goal=0.98,
        dependencies=(SKLEARN,),
        digits=True,
    ),
    "tabular": Task(
        "A regression on scikit-learn's diabetes data (442 patients, ten columns; they come with the package: no "
        "download)",
        "SupervisedModule",
        "DiabetesDataModule",
        metric="test/r2",
        higher_is_better=True,
        dependencies=(SKLEARN,),
    ),
    "language": Task(
        "A causal transformer on the text of Python's own help topics, byte by byte (it comes with Python: no "
        "download)",
        "LanguageModule",
        "TopicsDataModule",
        metric="test/bits_per_token",
        higher_is_better=False,
    ),
    "contrastive": Task(
        "An encoder that learns from scikit-learn's handwritten digits without a label (they come with the package: no "
        "download)",
        "ContrastiveModule",
        "DigitsDataModule",
        metric="test/linear_probe",
        higher_is_better=True,
        goal=0.95,
        dependencies=(SKLEARN,),
        digits=True,
    ),
    "vae": Task(
        "A variational autoencoder of scikit-learn's handwritten digits (they come with the package: no download)",
        "VAEModule",
        "DigitsDataModule",
        metric="test/elbo",
        higher_is_better=True,
        goal=11.5,
        dependencies=(SKLEARN,),
        digits=True,
    ),
    "gan": Task(
        "A generative adversarial network that draws handwritten digits, from scikit-learn's (they come with the "
        "package: no download)",
        "GANModule",
        "DigitsDataModule",
        metric="test/classes",
        higher_is_better=True,
        goal=9.0,
        dependencies=(SKLEARN,),
        digits=True,
        loss="train/loss/generator",
        judged_by="val/sure",
        ddp="ddp_find_unused_parameters_true",  # each backward pass is through one of the two networks
    ),
    "ocr": Task(
        "A reader of three-digit strings, put together from scikit-learn's handwritten digits (they come with the "
        "package: no download)",
        "TranscriptionModule",
        "StringsDataModule",
        metric="test/char_error_rate",
        higher_is_better=False,
        goal=0.05,
        dependencies=(SKLEARN,),
        digits=True,
    ),
    "blank": Task(
        "A small network on synthetic data, to be replaced by yours (look for `YOUR TURN` in `src/`)",
        "StarterModule",
        "StarterDataModule",
        metric="test/loss",
        higher_is_better=False,
        goal=0.01,
        module_from=".model",
        baseline=False,
    ),
}
