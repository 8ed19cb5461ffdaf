"""WeightInitialization: an InitPlan, applied once, never over weights that mean something."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final
from weakref import WeakSet

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from firstlight._rng import isolated_rng
from firstlight._shadows import Shadows
from firstlight.callbacks._sample_batch import sample_batch
from firstlight.initializers import InitPlan, InitReport, InitRule, initialize_, lsuv_

_DONE: WeakSet[LightningModule] = WeakSet()  # modules that have been filled: a later fit leaves them alone


@final
class WeightInitialization(Callback):
    """Initialize the weights after ``plan`` at the start of ``fit``.

    It runs after ``configure_model`` and before a checkpoint is restored and before DDP broadcasts, so layers made
    anywhere are seen, a checkpoint wins, and all ranks agree. A layer whose weights do not look freshly constructed
    (pretrained, or trained by an earlier ``fit``) is left alone, with a warning, unless ``force``.

    Role: actor; it fills parameters, once. It draws from a generator of its own, so the order of the data and every
    other random number stay what they were.
    Reads: the layers of the module; with ``lsuv`` one batch of the training data. Writes: their parameters.
    Logs: nothing; the reports are ``callback.report`` and ``callback.lsuv_report``, are printed, and where there is a
    logger stand in ``initialization.txt`` in the run folder (``trainer.log_dir``).

    Args:
        plan: default :meth:`firstlight.initializers.InitPlan.recommended`.
        lsuv: after the plan, scale linear and convolutional layers to unit variance on a training batch
            (:func:`firstlight.initializers.lsuv_`). The batch is drawn apart from the training loader, whose order
            stays what it was, and goes through ``forward``, or through ``training_step`` where there is no
            ``forward``. Under DDP each rank scales on a batch of its own, and DDP's broadcast makes rank 0's win.
        force: also fill layers that look trained.
        seed: of the generator; default: drawn from torch's global generator without advancing it.

    Raises:
        ValueError: in ``fit``, a plan for layers that are not there; with ``lsuv``, data that no batch can be drawn
            from without moving it, or a batch without variance.
    """

    role: ClassVar[str] = "actor"
    in_step: ClassVar[bool] = False  # experiments on copies go without it

    def __init__(
        self, plan: InitPlan | None = None, *, lsuv: bool = False, force: bool = False, seed: int | None = None
    ) -> None:
        self.plan = plan
        self.lsuv = lsuv
        self.force = force
        self.seed = seed
        self.report: InitReport | None = None
        self.lsuv_report: InitReport | None = None
        self._unwritten = False
        self._shadows = Shadows()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or pl_module in _DONE:
            return
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
            return  # sharded: the weights are real, and the checkpoint not yet read, in on_fit_start
        configure_model = pl_module.configure_model

        def configure_then_initialize() -> None:
            # Lightning calls this hook after every setup() and before it restores weights.
            self._shadows.lift()
            configure_model()
            self._initialize(trainer, pl_module)

        self._shadows.put(pl_module, "configure_model", configure_then_initialize)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sharded = isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy))
        if sharded and pl_module not in _DONE:
            rank_zero_warn(
                f"WeightInitialization stands aside under {type(trainer.strategy).__name__}: a shard does not know its "
                "fans; call firstlight.initializers.initialize_ in configure_model, before the model is sharded"
            )
        # A checkpoint has replaced what was filled: the record of how the run began stays.
        fresh = self._unwritten and trainer.ckpt_path is None
        self._unwritten = False
        if fresh and trainer.loggers and not getattr(trainer, "fast_dev_run", False):
            folder = trainer.log_dir  # on all ranks: it is a broadcast
            if folder is not None:
                self._write_report(Path(folder))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._shadows.lift()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._shadows.lift()

    def _initialize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        plan = self.plan or InitPlan.recommended()
        trained = [] if self.force else _trained(pl_module)
        if trained:
            shown = ", ".join(trained[:3]) + (", ..." if len(trained) > 3 else "")
            rank_zero_warn(
                f"WeightInitialization leaves {len(trained)} layer(s) alone that do not look freshly constructed "
                f"({shown}): pretrained or trained weights? Pass force=True to fill them all the same"
            )
            plan = InitPlan([*(InitRule("keep", names=_literal(name)) for name in trained), *plan.rules])
        with isolated_rng():
            # The device's own generator would tie the weights to the hardware; seeds come from the host's.
            seed = self.seed if self.seed is not None else int(torch.randint(2**31, ()))
            torch.manual_seed(seed)
            self.report = initialize_(pl_module, plan)
            if self.lsuv:
                self.lsuv_report = _lsuv(trainer, pl_module, skip=[_literal(row.name) for row in self.report.skipped])
        _DONE.add(pl_module)
        self._unwritten = True
        rank_zero_info(f"WeightInitialization:\n{self._text()}")

    def _text(self) -> str:
        lsuv = f"\n\nlsuv (standard deviations of outputs):\n{self.lsuv_report}" if self.lsuv_report else ""
        return f"{self.report}{lsuv}"

    @rank_zero_only
    def _write_report(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "initialization.txt").write_text(self._text() + "\n", encoding="utf-8")
        except OSError as error:
            rank_zero_warn(f"WeightInitialization could not write its report to {folder}: {error}")

    def state_dict(self) -> dict[str, Any]:
        return {}


def _lsuv(trainer: Trainer, pl_module: LightningModule, skip: list[str]) -> InitReport:
    batch = sample_batch(trainer, pl_module)
    if is_overridden("forward", pl_module):
        return lsuv_(pl_module, (_inputs(batch),), skip=skip)

    def step(batch: Any) -> None:
        indexed = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
        pl_module.training_step(batch, 0) if indexed else pl_module.training_step(batch)

    shadows = {"forward": step, "log": _nothing, "log_dict": _nothing}  # there is no loop yet to log to
    try:
        for name, shadow in shadows.items():
            setattr(pl_module, name, shadow)
        return lsuv_(pl_module, (batch,), skip=skip)
    finally:
        for name in shadows:
            pl_module.__dict__.pop(name, None)


def _inputs(batch: Any) -> Any:
    """What a module's forward takes of a batch: ``(inputs, targets)``, a mapping with "input", or all of it."""
    if isinstance(batch, Mapping):
        return batch.get("input", batch)
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``log``."""


def looks_fresh(layer: nn.Module) -> bool:
    """Whether the weight of ``layer`` could be torch's own default, by the bounds that a default never leaves.

    Linear and Conv draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), Bilinear with its first input as fan in, recurrent
    layers with the hidden size, attention from Xavier's uniform with zero bias; a few optimizer steps push some weight
    outside (of 20 seeds of Linear(30, 40): at most 1.0 times the bound fresh, above 3 times it after 50 steps of AdamW
    at 0.01). Norm layers start at exactly 1, embeddings at
    N(0, 1) by mean and spread. Layers of other kinds count as fresh: no plan fills them.
    """
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return _within([(p, layer.hidden_size) for p in layer.parameters()])
    if isinstance(layer, nn.MultiheadAttention):
        weights = [
            getattr(layer, name) for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        ]
        bias = layer.in_proj_bias
        untouched = bias is None or bias.is_meta or not bool(bias.any())
        return untouched and _within([(w, sum(w.shape) / 6) for w in weights if w is not None])
    weight = getattr(layer, "weight", None)
    if not _has_values(weight):
        return True
    assert isinstance(weight, nn.Parameter)
    values = weight.detach().float()
    if isinstance(layer, nn.Bilinear):
        return _within([(weight, weight.shape[1])])
    if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
        return _within([(weight, math.prod(weight.shape[1:]))])  # as torch counts it, transposed convolutions included
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        rows = values if layer.padding_idx is None else values[torch.arange(len(values)) != layer.padding_idx]
        count = rows.numel()
        if count < 2:
            return True
        # Mean and spread of N(0, 1) lie within five of their own standard errors.
        spread, mean = float(rows.std()), float(rows.mean())
        return abs(spread - 1.0) < 5.0 / math.sqrt(2 * count) and abs(mean) < 5.0 / math.sqrt(count)
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        running = layer.running_mean
        return bool((values == 1).all()) and (running is None or not bool(running.any()))
    if isinstance(layer, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        return bool((values == 1).all())
    return True


def _has_values(weight: object) -> bool:
    return (
        isinstance(weight, nn.Parameter)
        and not isinstance(weight, nn.parameter.UninitializedParameter)
        and not weight.is_meta
        and weight.is_floating_point()
        and weight.numel() > 0
    )


def _within(bounds: list[tuple[nn.Parameter, float]]) -> bool:
    """Whether every weight lies within 1 / sqrt(fan) of zero."""
    return all(float(w.detach().float().abs().max()) * math.sqrt(fan) <= 1.0001 for w, fan in bounds if _has_values(w))


def _trained(pl_module: nn.Module) -> list[str]:
    """Names of layers that do not look fresh; the two halves of an attention layer share their fate."""
    found = []
    for name, layer in pl_module.named_modules():
        parts = {name: layer}
        if isinstance(layer, nn.MultiheadAttention):
            parts[f"{name}.out_proj"] = layer.out_proj
        if not all(looks_fresh(part) for part in parts.values()):
            found += [part for part in parts if part not in found]
    return found


def _literal(name: str) -> str:
    """Return ``name`` as a pattern that matches itself alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
