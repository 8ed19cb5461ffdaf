"""What an epoch adds up: values that ``self.log`` averages, and states of metrics. Lightning saves neither."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

# By name, since functions are no plain values; Lightning takes the two of Python too.
_REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "max": torch.max, "min": torch.min, "py_max": max, "py_min": min}
_PLAIN = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")


def logged_values(trainer: Trainer) -> list[dict[str, Any]]:
    """Return what the training epoch has logged and added up so far, as plain values."""
    return [
        {
            "log": {name: getattr(result.meta, name) for name in _PLAIN},
            "reduction": next(name for name, fx in _REDUCTIONS.items() if fx is result.meta.reduce_fx),
            "sync": [result.meta.sync.should, result.meta.sync.rank_zero_only],
            "metric": result.meta.metric_attribute,
            "sums": {name: getattr(result, name).cpu() for name in result._defaults},
            "last": result._forward_cache.cpu() if isinstance(result._forward_cache, Tensor) else None,
            "has_reset": result.has_reset,
        }
        for result in trainer.fit_loop.epoch_loop._results.values()
        if result.meta.sync._group is None and (result.is_tensor or result.meta.metric_attribute)
    ]


def set_logged_values(trainer: Trainer, module: LightningModule, saved: list[dict[str, Any]]) -> None:
    """Log again what :func:`logged_values` returned, with its sums."""
    results = trainer.fit_loop.epoch_loop._results
    for one in saved:
        metric = one["metric"]
        should, rank_zero_only = one["sync"]
        results.log(
            **one["log"],
            value=module.get_submodule(metric) if metric else torch.zeros((), device=module.device),
            reduce_fx=_REDUCTIONS[one["reduction"]],
            sync_dist=should,
            sync_dist_fn=trainer.strategy.reduce,
            rank_zero_only=rank_zero_only,
            metric_attribute=metric,
            batch_size=1,
        )
        result = results[f"{one['log']['fx']}.{one['log']['name']}"]
        for name, value in one["sums"].items():
            setattr(result, name, value.to(module.device))
        result._forward_cache = None if one["last"] is None else one["last"].to(module.device)
        result.has_reset, result._computed = one["has_reset"], None


def metric_states(module: LightningModule) -> dict[str, dict[str, Any]]:
    """Return copies of the states of the metrics in ``module`` that have been updated since their last reset."""
    found = {}
    for path, metric in module.named_modules():
        if isinstance(metric, Metric) and metric._update_count:
            states = {name: _copied(getattr(metric, name)) for name in metric._defaults}
            found[path] = {"count": metric._update_count, "states": states}
    return found


def set_metric_states(module: LightningModule, saved: dict[str, dict[str, Any]]) -> None:
    """Put the states back as they were; metrics that had none are reset."""
    for path, metric in module.named_modules():
        if not isinstance(metric, Metric):
            continue
        if path in saved:
            for name, value in saved[path]["states"].items():
                setattr(metric, name, _on(value, metric.device))
            metric._update_count, metric._computed = saved[path]["count"], None
        elif metric._update_count:
            metric.reset()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else [item.detach() for item in value]


def _on(value: Any, device: Any) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else [item.to(device) for item in value]
