"""TrackedLoader: where a DataLoader's iteration began, and how to enter it in the middle."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from firstlight._shadows import Shadows
from firstlight.recovery._random_state import host_state, set_host_state
from firstlight.recovery._worker_states import Starting, WorkerStates


class TrackedLoader:
    """Writes down what decided the order of a loader's epoch, and draws the same order again up to any batch.

    Any sampler is a function of the random numbers at two moments (when iteration begins, and when the first index
    is asked for) and of its own state. With those, the order is drawn again and the batches that were trained on are
    passed over without being loaded. Nothing that the loader yields is changed.

    Args:
        loader: A DataLoader; its instance gets a ``_get_iterator``, which :meth:`let_go` takes away again.
        number_of_batch: Returns how many batches of this epoch have been trained on.
        enter: A state of :meth:`state`, to be entered by the first iteration.
        settle: Called before it is entered.
        anew: The loader was made for the epoch that a resumed run begins with.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        number_of_batch: Callable[[], int],
        enter: dict[str, Any] | None = None,
        settle: Callable[[], None] = lambda: None,
        *,
        anew: bool = False,
    ) -> None:
        self.loader = loader
        self.streams = isinstance(loader.dataset, IterableDataset)
        self.recent: dict[int, Any] = {}  # indices of the samples by batch, for batches that may be asked for
        self._number_of_batch = number_of_batch
        self._enter, self._settle, self._anew = enter, settle, anew
        self.early = False  # a batch was asked for before the random numbers were put back
        self.ready = False  # they were
        self.again = False  # what is iterated now may be begun once more, before its first batch
        self._expected = True  # whether the next iteration is the Trainer's: others may look at the same loader
        self._begun: dict[str, Any] = {}
        self._workers: WorkerStates | None = None
        self._asked = 0  # index batches that were drawn in this iteration
        self._goes_on = False  # persistent workers have had an iteration before
        self._skip = 0
        self._make: Callable[[], Any] = loader._get_iterator
        self._shadows = Shadows()
        self._shadows.put(loader, "_get_iterator", lambda: self._get_iterator())

    def let_go(self) -> None:
        """Leave the loader as it was."""
        self._shadows.lift()

    def expect(self) -> None:
        """Take the next iteration for the Trainer's."""
        self._expected = True

    def begin_again(self) -> None:
        """Forget an iterator that was built too early."""
        self.early, self.again = False, True
        self.loader._iterator = None

    def state(self, *, over: bool) -> dict[str, Any]:
        """Return what the epoch began with and how far it came, as plain values; ``over``: the next one is due."""
        loader, begun = self.loader, self._begun
        if self._enter is not None:
            return self._enter  # nothing was drawn since
        batches = 0 if over else self._number_of_batch() - begun.get("at", 0)
        return {
            **begun,
            "over": over,
            "batches": batches,
            "workers": self._worker_states(batches, over),
            "persistent": loader.persistent_workers,
            "now": self._parts_state() if over else {},
            "batch_size": loader.batch_size,
            "num_workers": loader.num_workers,
            "size": None if self.streams else len(loader.dataset),  # type: ignore[arg-type]
        }

    def _worker_states(self, batches: int, over: bool) -> list[Any]:
        count = self.loader.num_workers
        if self._workers is None or (over and not self.loader.persistent_workers):
            return [None] * count
        if self.streams:
            return [None] * count if over else [self._workers.after(worker, 0) for worker in range(count)]
        # Batches go round: the epoch is entered where it is the first worker's turn.
        whole = self._asked if over else batches - batches % count
        return [self._workers.after(worker, _share(whole, worker, count)) for worker in range(count)]

    def _parts_state(self) -> dict[str, Any]:
        """Return the state of the sampler and of the generators that were given to the loader."""
        stateful = [part for part in self._samplers() if callable(getattr(part, "state_dict", None))]
        return {
            "samplers": [part.state_dict() for part in stateful],
            "epochs": [getattr(part, "epoch", None) for part in self._samplers() if hasattr(part, "set_epoch")],
            "generators": self._generator_states(),
        }

    def _set_parts(self, state: dict[str, Any]) -> None:
        stateful = [part for part in self._samplers() if callable(getattr(part, "load_state_dict", None))]
        for part, of_part in zip(stateful, state["samplers"], strict=False):
            part.load_state_dict(of_part)
        self._set_generators(state["generators"])

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _set_generators(self, states: Iterable[Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=False):
            generator.set_state(state)

    def _samplers(self) -> list[Any]:
        batch_sampler = self.loader.batch_sampler
        parts = (self.loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        return list({id(part): part for part in parts if part is not None}.values())

    def _generators(self) -> list[torch.Generator]:
        found = [getattr(part, "generator", None) for part in (self.loader, *self._samplers())]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def _get_iterator(self) -> Any:
        if self.again and self._begun:
            set_host_state(self._begun["start"])
        elif not self._expected:
            return self._make()
        if self._enter is not None:
            return _Later(self._make_entered)
        if self._anew:
            return _Later(self._make_anew)
        self._expected = False
        return self._make_tracked([])

    def _make_entered(self) -> Any:
        """Build the iterator that goes on where the state was taken."""
        state = self._enter
        assert state is not None
        if state["over"] and not self.ready:
            self.early = True
            return self._make()
        self._enter = None
        self._expected = False
        if self.ready:
            self._settle()
        if state["over"]:
            self._set_parts(state["now"])
            # Workers that live on draw no seed for a further epoch.
            self._goes_on = bool(state["persistent"])
            made = self._make_tracked(state["workers"])
            self._goes_on = False
        else:
            here = host_state()
            self._set_parts(state["parts"])
            for part, epoch in zip(
                [part for part in self._samplers() if hasattr(part, "set_epoch")],
                state["parts"]["epochs"],
                strict=False,
            ):
                part.set_epoch(epoch)
            set_host_state(state["start"])
            made = self._enter_epoch(state)
            set_host_state(here)
        if self.loader.persistent_workers:
            self.loader._iterator = made
        return made

    def _make_anew(self) -> Any:
        """Build the iterator of a loader that the epoch has for itself; the unbroken run begins with it twice."""
        if not self.ready:
            self.early = True
            return self._make()
        self._anew = self._expected = False
        self._settle()
        if not self.loader.persistent_workers:
            self._make()
            return self._make_tracked([])
        self.loader._iterator = made = self._make_tracked([])
        made._reset(self.loader)
        return made

    def _enter_epoch(self, state: dict[str, Any]) -> Any:
        count, batches = self.loader.num_workers, state["batches"]
        read = batches if self.streams else batches % count if count else 0
        self._skip = batches - read
        kept = ("start", "first", "first_generators", "at", "passed", "parts", "lazy")
        self._begun = {key: state[key] for key in kept if key in state}
        made = self._make_tracked(state["workers"], replay=self._begun)
        for _ in range(read):
            next(made)
        return made

    def _make_tracked(self, workers: list[Any], replay: dict[str, Any] | None = None) -> Any:
        """Build an iterator that draws its indices through us, and whose workers note what they drew."""
        loader, own = self.loader, vars(self.loader)
        name = "batch_sampler" if loader.batch_sampler is not None else "sampler"
        replaced = {key: own[key] for key in (name, "collate_fn", "worker_init_fn")}
        self._workers = None
        order = own[name] = _Order(own[name], self, replay)
        if loader.num_workers:
            self._workers = WorkerStates(loader.num_workers, loader.prefetch_factor or 2)
            own["collate_fn"] = self._workers.noting(loader.collate_fn)
            if any(state is not None for state in workers):
                own["worker_init_fn"] = Starting(loader.worker_init_fn, workers)
                self._workers.start_with(workers, _share(self._skip, 0, loader.num_workers))
        try:
            return self._make()
        finally:
            own.update(replaced)  # the loader is the user's; the iterator has what it needs
            order.new = False

    def begins(self, replay: dict[str, Any] | None) -> None:
        """Take note: an iterator asks for the order of an epoch."""
        if self._workers is not None:
            if not self._workers.fresh:
                count = self.loader.num_workers
                asked = [_share(self._asked, worker, count) for worker in range(count)]
                self._workers.begin(None if self.streams else asked)
            self._workers.fresh = False
        if replay is None:
            self._skip = 0
            self._begun = {"start": host_state(), "first": None, "at": self._number_of_batch(), "passed": 0}
            self._begun |= {"lazy": False, "parts": self._parts_state()}

    def walk(self, order: Any, replay: dict[str, Any] | None) -> Iterator[Any]:
        """Yield the order, and take note of the random numbers that it began with."""
        if replay is None:
            if self._goes_on:
                set_host_state(self._begun["start"])
                self._set_generators(self._begun["parts"]["generators"])
            self._begun["first"] = host_state()
            self._begun["first_generators"] = self._generator_states()
            here = None
        else:
            here = host_state()
            if replay["first"] is not None:
                set_host_state(replay["first"])
                # Building an iterator draws a seed from the loader's own, which workers that live on did not need.
                self._set_generators(replay.get("first_generators", ()))
        indices = iter(_rest(order, self._begun["passed"]) if self._begun["passed"] else order)
        for _ in range(self._skip):
            next(indices)
        self._asked = self._skip
        for number in itertools.count(self._skip):
            before = host_state() if number == self._skip + 1 else None
            index = next(indices, _END)
            if before is not None:
                self._begun["lazy"] |= not torch.equal(before, host_state())
            if here is not None:
                set_host_state(here)
                here = None
            if index is _END:
                break
            self._note(number, index)
            self._asked = number + 1
            yield index
        self._expected = True

    def _note(self, number: int, index: Any) -> None:
        self.recent[number] = index
        ahead = 2 + self.loader.num_workers * (self.loader.prefetch_factor or 0)
        self.recent.pop(number - ahead, None)


_END = object()


def _rest(order: Any, passed: int) -> BatchSampler:
    """Return batches of the samples that follow the first ``passed``."""
    return BatchSampler(itertools.islice(order.sampler, passed, None), order.batch_size, order.drop_last)


def _share(batches: int, worker: int, count: int) -> int:
    """Return how many of so many batches are a worker's, when they go round."""
    return (batches - worker + count - 1) // count if batches > worker else 0


class _Order:
    """A sampler that tells a TrackedLoader when it is asked; all else is the sampler's own."""

    def __init__(self, order: Any, tracked: TrackedLoader, replay: dict[str, Any] | None) -> None:
        self.new = True  # while its iterator is being built: with workers, that asks twice
        self._order, self._tracked, self._replay = order, tracked, replay
        self._told = False

    def __iter__(self) -> Iterator[Any]:
        replay = self._replay if self.new else None
        if not (self.new and self._told):
            self._tracked.begins(replay)
        self._told = True
        return self._tracked.walk(self._order, replay)

    def __len__(self) -> int:
        return len(self._order)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._order, name)


class _Later:
    """An iterator that is built when its first batch is asked for.

    Lightning begins the first epoch's iteration before ``on_train_start``: too early for a resumed run, whose random
    numbers are put back there and whose sampler does not know its epoch yet.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __iter__(self) -> _Later:
        return self

    def __next__(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return next(self._made)

    def _reset(self, loader: DataLoader[Any]) -> None:
        """Take the start of an epoch, which persistent workers are told in this way."""
        if self._made is not None:
            self._made._reset(loader)
