"""LightningModules: an abstract one that adds up named loss terms, and a final one per kind of task."""

from firstlight.modules._contrastive_module import ContrastiveModule
from firstlight.modules._exportable import Exportable
from firstlight.modules._gan_module import GANModule
from firstlight.modules._language_module import LanguageModule
from firstlight.modules._objective_module import ObjectiveModule
from firstlight.modules._supervised_module import SupervisedModule
from firstlight.modules._transcription_module import TranscriptionModule
from firstlight.modules._vae_module import VAEModule

__all__ = [
    "ContrastiveModule",
    "Exportable",
    "GANModule",
    "LanguageModule",
    "ObjectiveModule",
    "SupervisedModule",
    "TranscriptionModule",
    "VAEModule",
]
