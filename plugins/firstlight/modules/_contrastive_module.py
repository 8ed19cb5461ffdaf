"""ContrastiveModule: an encoder that learns from pairs of views of the same sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from firstlight._require import require
from firstlight._rng import isolated_rng
from firstlight.modules._batch import input_and_target
from firstlight.modules._exportable import Exportable
from firstlight.modules._linear_probe import LinearProbe, spread_batches
from firstlight.modules._objective_module import ObjectiveModule
from firstlight.modules._shared import Stage


@final
class ContrastiveModule(ObjectiveModule):
    """Train ``encoder`` so that two views of a sample have embeddings near each other, and far from other samples'.

    The loss compares ``projection(encoder(view))``; the representation, which :meth:`forward` and prediction return, is
    ``encoder(x)``. The loss's one term is named ``contrastive``.

    Where views come from:

    * with ``augmentation``, a batch is ``x``, ``(x, label)`` or a mapping with ``"input"`` and maybe ``"target"``, and
      the augmentation is applied to it twice, on the device. In evaluation too it runs in training mode, from a seed of
      its own, so that ``val/loss`` is repeatable;
    * without, a batch is ``(view1, view2)``, ``(view1, view2, label)`` or a mapping with ``"view1"``, ``"view2"`` and
      maybe ``"target"``; its first view stands for the sample.

    Both views go through the encoder in one pass: batch norm sees them together, as in SimCLR.

    Logs: as :class:`ObjectiveModule`, and, in the validation of a ``fit`` whose batches have labels,
    ``val/linear_probe``: the accuracy on the validation data of a linear classifier (ridge regression in closed form)
    of the representation of ``probe_samples`` training samples, without augmentation. It is fitted anew at each
    validation, on the same samples; encoder, loader and random numbers stay as they are, and under DDP ranks share the
    work and agree on the classifier. The train loader must be a DataLoader of a dataset with a length.

    Args:
        encoder: ``[N, *]`` to the representation ``[N, D]``.
        projection: representation to the embedding that the loss compares; ``torch.nn.Identity()`` for none.
        loss: embeddings of both views to a scalar: ``NTXentLoss``, ``InfoNCELoss``.
        augmentation: see above.
        probe_samples: at most so many training samples for the linear probe; 0: no probe.
        penalties: see :class:`ObjectiveModule`.
        optimizer: see :class:`ObjectiveModule`.

    Source: Chen et al. 2020, arXiv:2002.05709.

    Raises:
        ValueError: ``probe_samples`` below 0; views of two shapes.
        TypeError: an argument that is neither the object asked for nor its spec; a batch of another form.

    >>> from firstlight.layers import GaussianNoise
    >>> from firstlight.losses import NTXentLoss
    >>> module = ContrastiveModule(nn.Linear(8, 6), nn.Linear(6, 2), NTXentLoss(), augmentation=GaussianNoise(0.1))
    >>> module(torch.ones(5, 8)).shape
    torch.Size([5, 6])
    """

    reaches_floor: ClassVar[bool] = False  # views keep changing, and few dimensions hold no simplex

    def __init__(
        self,
        encoder: nn.Module,
        projection: nn.Module,
        loss: nn.Module,
        *,
        augmentation: nn.Module | None = None,
        probe_samples: int = 2048,
        penalties: Sequence[nn.Module] = (),
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__(penalties=penalties, optimizer=optimizer)
        for name, part in (("encoder", encoder), ("projection", projection), ("loss", loss)):
            require(isinstance(part, nn.Module), name, part, "an nn.Module or its spec", error=TypeError)
        ok = augmentation is None or isinstance(augmentation, nn.Module)
        require(ok, "augmentation", augmentation, "an nn.Module, its spec or None", error=TypeError)
        require(probe_samples >= 0, "probe_samples", probe_samples, "zero or more")
        self.encoder = encoder
        self.projection = projection
        self.loss = loss
        self.augmentation = augmentation
        self.probe_samples = probe_samples
        self._probe: LinearProbe | None = None
        self._said = False

    def forward(self, x: Any) -> Any:
        return self.encoder(x)

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        view1, view2 = self._views(batch)
        require(view2.shape == view1.shape, "view2", tuple(view2.shape), f"of the shape of view1, {tuple(view1.shape)}")
        first, second = self.projection(self.encoder(torch.cat([view1, view2]))).chunk(2)
        return {"contrastive": self.loss(first, second)}

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._evaluate(batch, "val", batch_idx)
        if self._probe is not None:
            x, target = self._sample_and_target(batch)
            right = (self._probe(self._features(x)) == target).float().mean()
            self.log("val/linear_probe", right, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(target))
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test", batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(self._sample_and_target(batch)[0])

    def export_model(self, batch: Any) -> Exportable:
        return Exportable(self.encoder, (self._sample_and_target(batch)[0],))

    def on_validation_epoch_start(self) -> None:
        self._probe = self._fit_probe() if self.probe_samples else None

    def _evaluate(self, batch: Any, stage: Stage, batch_idx: int) -> Tensor:
        with isolated_rng(seed=batch_idx):
            terms = self.loss_terms(batch)
        return self.objective(terms, stage=stage, batch_size=self.batch_size(batch))

    def _views(self, batch: Any) -> tuple[Tensor, Tensor]:
        if self.augmentation is not None:
            x, _ = input_and_target(batch)
            self.augmentation.train()
            views = self.augmentation(x), self.augmentation(x)
            self.augmentation.train(self.training)
            return views
        view1, view2, _ = _two_views(batch)
        return view1, view2

    def _sample_and_target(self, batch: Any) -> tuple[Tensor, Any]:
        if self.augmentation is not None or isinstance(batch, Tensor):
            return input_and_target(batch)
        view, _, target = _two_views(batch)
        return view, target

    def _features(self, x: Any) -> Tensor:
        features: Tensor = self.encoder(x)
        return features.flatten(1).float()

    def _fit_probe(self) -> LinearProbe | None:
        trainer, loader = self.trainer, self.trainer.train_dataloader
        if trainer.sanity_checking or loader is None:
            return None
        sized = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
        if not sized or len(loader.dataset) < trainer.world_size:
            if not self._said:
                rank_zero_warn("no val/linear_probe: the train loader is not a DataLoader of a dataset with a length")
            self._said = True
            return None
        found: list[tuple[Tensor, Tensor]] = []
        with isolated_rng(seed=0), torch.no_grad(), trainer.precision_plugin.val_step_context():
            share = {"rank": trainer.global_rank, "ranks": trainer.world_size}
            for batch in spread_batches(loader, self.probe_samples, **share):
                batch = trainer.precision_plugin.convert_input(batch)
                x, target = self._sample_and_target(trainer.strategy.batch_to_device(batch))
                if target is None:
                    return None
                found.append((self._features(x), target))
        features, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        reduce = trainer.strategy.reduce
        return LinearProbe.fit(
            features,
            targets,
            sum_ranks=lambda x: reduce(x, reduce_op="sum"),
            max_ranks=lambda x: reduce(x, reduce_op="max"),
        )


def _two_views(batch: Any) -> tuple[Tensor, Tensor, Any]:
    if isinstance(batch, Mapping) and {"view1", "view2"} <= batch.keys():
        return batch["view1"], batch["view2"], batch.get("target")
    found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    expected = (
        "(view1, view2), (view1, view2, label) or a mapping with 'view1' and 'view2'; with augmentation=... one input "
        "is enough"
    )
    ok = isinstance(batch, (tuple, list)) and len(batch) in (2, 3)
    require(ok, "batch", found, expected, error=TypeError)
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None
