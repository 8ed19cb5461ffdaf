"""Programs that nobody who built the preflight had seen: healthy ones, and faults with their twins."""

from held_out import faults_in_steps, faults_later, faults_set_up, healthy_later, healthy_nets, healthy_training
from held_out.base import FAULTY, HEALTHY, Program

__all__ = [
    "FAULTY",
    "HEALTHY",
    "Program",
    "faults_in_steps",
    "faults_later",
    "faults_set_up",
    "healthy_later",
    "healthy_nets",
    "healthy_training",
]
