"""How the rest of an epoch is entered when ranks, batches or data are not what they were."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler, DataLoader


def entered(
    loader: DataLoader[Any], saved: dict[str, Any], *, ranks: tuple[int, int], trainer: Trainer
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the state to enter ``loader`` with, and what will differ from the unbroken run.

    ``ranks`` is their number then and now. The samples that were trained on are passed over, whatever the batch size
    is now, where one order holds for all ranks: with a sampler of :mod:`firstlight.sampling`, or with one process.
    Lightning's counters then say how many batches are left.
    """
    changed = [
        f"{name} was {then}, is {now}"
        for name, then, now in (
            ("the number of ranks", *ranks),
            ("the batch size", saved["batch_size"], loader.batch_size),
            ("the number of samples", saved["size"], _size(loader, saved)),
        )
        if then != now
    ]
    if "start" not in saved:
        return None, [
            *changed,
            f"{type(loader).__name__} does not begin its epochs as a DataLoader does: the data's order",
        ]
    if saved["num_workers"] != loader.num_workers and (saved["num_workers"] or loader.num_workers):
        changed.append(f"num_workers was {saved['num_workers']}, is {loader.num_workers}: what workers draw")
        saved = {**saved, "workers": [None] * loader.num_workers}
        if changed == changed[-1:]:
            return saved, changed
    if saved["lazy"] and not loader.num_workers and not saved["over"]:
        changed.append("the sampler draws from the global generators while it runs: the data's order")
    if len(changed) == 0 or (saved["over"] and saved["size"] == _size(loader, saved)):
        return saved, changed
    if saved["over"]:
        return None, changed
    return _rest(loader, saved, ranks, trainer, changed)


def _size(loader: DataLoader[Any], saved: dict[str, Any]) -> int | None:
    return None if saved["size"] is None else len(loader.dataset)  # type: ignore[arg-type]


def _rest(
    loader: DataLoader[Any], saved: dict[str, Any], ranks: tuple[int, int], trainer: Trainer, changed: list[str]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Pass over samples, where batches are not what they were."""
    size, then = _size(loader, saved), saved["batch_size"]
    known = size is not None and size == saved["size"] and then is not None and loader.batch_size is not None
    if known and trainer.limit_train_batches != 1.0:
        known = False
    if not known:
        return None, [*changed, _ANEW]
    assert size is not None
    consumed = saved["passed"] + saved["batches"] * then * ranks[0]
    place = next((state for state in saved["parts"]["samplers"] if "place" in state), None)
    sampler: Any = loader.sampler
    if place is not None and callable(getattr(sampler, "load_state_dict", None)):
        consumed += place["place"]
        sampler.load_state_dict({**place, "place": consumed})
        enter = None
    elif ranks == (1, 1) and type(loader.batch_sampler) is BatchSampler:
        enter = {**saved, "passed": consumed, "batches": 0, "workers": [None] * loader.num_workers}
    else:
        return None, [*changed, _ANEW]
    left = -(-max(0, size - consumed) // ranks[1])
    assert loader.batch_size is not None
    batches = left // loader.batch_size if loader.drop_last else -(-left // loader.batch_size)
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    pending = progress.ready - progress.completed
    progress.ready = progress.started = progress.processed = len(loader) - batches
    progress.completed = progress.ready - pending
    if enter is not None:
        enter["at"] = progress.processed
    return enter, [*changed, "no sample of this epoch is lost or comes twice, in other batches"]


_ANEW = "the rest of this epoch is drawn anew: some samples come twice and some not at all"
