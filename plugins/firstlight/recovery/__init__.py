"""Recovery: a run that was stopped, or met a number that is none, goes on as if nothing had been."""

from firstlight.recovery._exact_resume import ExactResume
from firstlight.recovery._non_finite_guard import NonFiniteGuard
from firstlight.recovery._rank_watch import RankWatch

__all__ = ["ExactResume", "NonFiniteGuard", "RankWatch"]
