"""Sampling: which samples come when, the same again after a resume."""

from firstlight.sampling._competence import Competence
from firstlight.sampling._curriculum_sampler import CurriculumSampler
from firstlight.sampling._resumable_sampler import ResumableSampler

__all__ = ["Competence", "CurriculumSampler", "ResumableSampler"]
