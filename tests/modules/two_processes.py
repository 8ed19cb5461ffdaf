"""Trains and measures both modules under DDP in two gloo processes; writes down what each rank saw."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from modules.language_models import CausalTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from firstlight.losses import LinearCrossEntropyLoss
from firstlight.modules import GANModule, LanguageModule, TranscriptionModule
from helpers import trainer

KINDS = 12


def modules() -> dict[str, Any]:
    torch.manual_seed(0)
    model = CausalTransformer(KINDS, width=16, depth=1, heads=2, context=16)
    loss = LinearCrossEntropyLoss(label_smoothing=0.1)
    return {
        "language": LanguageModule(
            model,
            nn.Linear(16, KINDS),
            loss,
            tie_to="embedding",
            context_length=16,
            alphabet="abcdefghijkl",
            sample_prompts=["abc"],
        ),
        "transcription": TranscriptionModule(nn.Linear(6, 5), beam_width=3),
    }


def data() -> dict[str, DataLoader]:
    """Return batches of 3 from 12 samples: every second one, so those of rank 1, have few targets."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(KINDS, (12, 17), generator=generator)
    target = tokens[:, 1:].clone()
    target[1::2, 2:] = -100
    target[3] = -100  # none at all
    frames, labels = 3 * torch.randn(12, 10, 6, generator=generator), torch.randint(1, 5, (12, 4), generator=generator)
    frame_lengths, label_lengths = torch.full((12,), 10), torch.full((12,), 4)
    label_lengths[1::2] = 1
    sets: dict[str, tuple[Tensor, ...]] = {
        "language": (tokens[:, :-1], target),
        "transcription": (frames, labels, frame_lengths, label_lengths),
    }
    return {name: DataLoader(TensorDataset(*tensors), batch_size=3) for name, tensors in sets.items()}


def sharded_gap(rank: int) -> float:
    """Return how far gradients under fully_shard are, at most, from the mean over ranks of those of whole modules."""

    def language() -> LanguageModule:
        torch.manual_seed(2)
        return LanguageModule(CausalTransformer(KINDS, width=16, depth=1, heads=2, context=16), nn.Linear(16, KINDS))

    tokens = torch.randint(KINDS, (2, 3, 17), generator=torch.Generator().manual_seed(3))
    plain, sharded = [language(), language()], language()
    for module, batch in zip(plain, tokens, strict=True):
        module.loss_terms(batch)["task"].backward()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(sharded.model, mesh=mesh)
    fully_shard(sharded.head, mesh=mesh)
    with torch.no_grad():
        sharded(tokens[rank][:, 1:])  # leaves the head gathered, as generating does
    sharded.loss_terms(tokens[rank])["task"].backward()
    return largest_gap(sharded, plain)


def largest_gap(sharded: nn.Module, plain: Sequence[nn.Module]) -> float:
    gaps = []
    for (name, parameter), *whole in zip(
        sharded.named_parameters(), *(module.parameters() for module in plain), strict=True
    ):
        assert isinstance(parameter.grad, DTensor), name
        mean = torch.stack([other.grad for other in whole]).mean(0)
        gaps.append((parameter.grad.full_tensor() - mean).abs().max().item() / mean.abs().max().item())
    return max(gaps)


def gap_of_penalties(rank: int) -> float:
    """The same for a discriminator whose loss holds gradients of itself."""

    def gan() -> GANModule:
        torch.manual_seed(2)
        critic = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1))
        return GANModule(nn.Linear(2, 6), critic, latent_dim=2, r1=1.0, r1_every=2, gradient_penalty=1.0)

    def backward(module: GANModule, rank: int) -> None:
        torch.manual_seed(rank)  # of the points between real and fake
        real, fake = samples[rank]
        module._discriminate(real, fake, lazy=True, step=torch.Tensor.backward)

    samples = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(3))
    plain, sharded = [gan(), gan()], gan()
    for number, module in enumerate(plain):
        backward(module, number)
    fully_shard(sharded.discriminator[0], mesh=init_device_mesh("cpu", (2,)))
    fully_shard(sharded.discriminator, mesh=init_device_mesh("cpu", (2,)))
    for _ in range(2):  # what the first one left gathered would be seen in the second
        sharded.zero_grad()
        backward(sharded, rank)
    return largest_gap(sharded.discriminator, [module.discriminator for module in plain])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.chdir(folder)
    seen: dict[str, Any] = {}
    for name, module in modules().items():
        run = trainer(devices=2, strategy="ddp", max_epochs=1)
        (seen[name],) = run.validate(module, data()[name], verbose=False)
        run.fit(module, data()[name], data()[name])
        seen[f"{name} trained"] = {key: float(value) for key, value in run.callback_metrics.items() if "val/" in key}
        run.save_checkpoint(folder / f"{name}.ckpt")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    seen["sharded gap"] = sharded_gap(rank)
    seen["gap of penalties"] = gap_of_penalties(rank)
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
