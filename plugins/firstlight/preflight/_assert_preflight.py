"""assert_preflight: a preflight as a test."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from firstlight.checks import Severity
from firstlight.preflight._apply_suppressions import apply_suppressions
from firstlight.preflight._run import run_preflight
from firstlight.preflight._suppression import Suppression


def assert_preflight(
    module: LightningModule,
    datamodule: Any = None,
    *,
    trainer: Trainer | None = None,
    fail_on: Severity = Severity.ERROR,
    ignore: Iterable[str] = (),
    budget_seconds: float = 30,
    seed: int = 0,
) -> None:
    """Fail a test whose set-up cannot learn; the diagnosis is the message.

    Args:
        module: as for :func:`run_preflight`, like ``datamodule``, ``trainer``, ``budget_seconds`` and ``seed``.
        datamodule: see there.
        trainer: see there.
        fail_on: the least severity that fails.
        ignore: codes whose findings are accepted.
        budget_seconds: see there.
        seed: see there.

    Raises:
        AssertionError: a finding of ``fail_on`` or above, or a check that failed itself.
    """
    report = run_preflight(module, datamodule, trainer=trainer, budget_seconds=budget_seconds, seed=seed)
    report = apply_suppressions(report, [Suppression(code, "accepted by this test") for code in ignore])
    # 4, a spent budget, is no fault of the set-up.
    if report.exit_code_at(fail_on) in (1, 3):
        said = io.StringIO()
        report.print(said)
        raise AssertionError(f"preflight:\n{said.getvalue()}")
