"""LightningModules: an abstract one that adds up named loss terms, and a final one per kind of task."""

from firstlight.modules._objective_module import ObjectiveModule
from firstlight.modules._supervised_module import SupervisedModule

__all__ = ["ObjectiveModule", "SupervisedModule"]
