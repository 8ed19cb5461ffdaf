"""RankWatch: when one rank is lost, all end, and one message says which and why."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from firstlight._require import require, said_by

_BEAT = 1.0  # seconds between signs of life
_GRACE = 3.0  # seconds that the main thread has to end by itself, once the others are known to be gone
EXIT_CODE = 70  # EX_SOFTWARE: an error that no change of arguments mends; torchrun restarts on any but 0


@final
class RankWatch(Callback):
    """End the run on all ranks when one of them hangs, stops, raises, or has another number of batches; name it.

    Without it the others wait in a collective for as long as the backend's timeout (10 to 30 minutes), and what is
    printed then is a timeout of whoever waited. Each rank has a thread that leaves a sign of life every second in a
    :class:`torch.distributed.TCPStore` of its own, with the place in the run that the main thread has reached, and
    reads those of the others:

    * a rank that *raises* leaves its error: the others end within 2 seconds and their grace of 3;
    * a rank that is *stopped*, or *died* where no launcher tells, leaves no signs: within ``dead_after`` and the grace
      (``torchrun`` sees the death of its own child at once, names it and ends the others before that);
    * a rank that *hangs* leaves signs, but stands behind the others, which wait: within ``timeout``, and the message
      says in which line it hangs;
    * *unequal numbers of batches*: refused before the first batch, where loaders have a length. Without one nobody
      knows them: a rank that is through ends without a fault, and the others by the error of their backend.

    The lowest rank that is left writes the message to standard error; all end with a code other than 0: 70, or 1 where
    an error was raised. What restarts them, as ``torchrun --max-restarts`` does, can go on from the last checkpoint.

    Role: observer, as long as nobody is lost.
    Reads: the place in the run. Writes: nothing. Logs: nothing. One process: nothing at all.

    Args:
        timeout: seconds without a step, while another rank is further. Longer than the slowest step, compilation
            and checkpoint; torch's own for NCCL is 600.
        dead_after: seconds without a sign of life.

    Raises:
        ValueError: an argument out of range; loaders of unequal length, on all ranks.
    """

    role: ClassVar[str] = "observer"

    def __init__(self, timeout: float = 600.0, *, dead_after: float = 15.0) -> None:
        require(timeout > 0, "timeout", timeout, "above zero, in seconds")
        require(dead_after >= 3 * _BEAT, "dead_after", dead_after, f"{3 * _BEAT:g} seconds or more")
        self.timeout = timeout
        self.dead_after = dead_after
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._moves = 0
        self._place = "the start"
        self._error = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        lengths: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(lengths, float(trainer.num_training_batches))
        each = ", ".join(f"rank {rank} has {length:g}" for rank, length in enumerate(lengths))
        require(len(set(lengths)) == 1, "the number of training batches", each, "the same on all ranks")
        self._over.clear()
        self._error = ""
        self._move(trainer, "the start")
        store = _store(trainer)
        store.set(f"beat/{trainer.global_rank}", json.dumps(self._beat(time.monotonic(), "", 0.0, None)))
        torch.distributed.barrier()  # from here on each finds the others' signs
        self._thread = threading.Thread(
            target=self._watch,
            args=(store, trainer.global_rank, trainer.world_size),
            daemon=True,
            name="firstlight-ranks",
        )
        self._thread.start()

    def _move(self, trainer: Trainer, what: str) -> None:
        self._moves += 1
        self._place = f"{what} (step {trainer.global_step}, epoch {trainer.current_epoch})"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(trainer, "the start of an epoch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._move(trainer, f"batch {batch_idx}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._move(trainer, f"the end of batch {batch_idx}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(trainer, "the end of an epoch")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._move(trainer, f"validation batch {batch_idx}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._move(trainer, "a checkpoint")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._thread is None:
            return
        place = traceback.extract_tb(exception.__traceback__)[-1]
        self._error = f"{said_by(exception)} in {place.filename}:{place.lineno}"
        if isinstance(exception, RuntimeError) and _of_a_collective(exception):
            # Another one is gone, and this is how it shows here: its signs say who.
            self._over.wait(self.dead_after + 2 * _BEAT + _GRACE)
        self._over.wait(2 * _BEAT)  # so that the error is read before this process ends
        self._end()

    def _end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(2 * _BEAT)
        self._thread = None

    def _watch(self, store: Any, rank: int, ranks: int) -> None:
        main = threading.main_thread().ident
        seen: dict[int, tuple[Any, float]] = {}
        still = (-1, time.monotonic())
        while not self._over.is_set():
            now = time.monotonic()
            if still[0] != self._moves:
                still = (self._moves, now)
            error = self._error
            mine = self._beat(now, "" if _is_secondary(error) else error, now - still[1], main)
            try:
                store.set(f"beat/{rank}", json.dumps(mine))
                beats = {other: json.loads(store.get(f"beat/{other}")) for other in range(ranks)}
            except Exception:
                if self._over.wait(_GRACE):
                    return
                _say_and_exit(
                    f"rank 0 of {ranks} is gone, and with it what the ranks share; it had died or ended early"
                )
            for other, beat in beats.items():
                if other not in seen or seen[other][0] != beat["count"]:
                    seen[other] = (beat["count"], now)
            lost = self._lost(beats, {other: now - at for other, (_, at) in seen.items()}, ranks)
            if lost is not None:
                culprit, words = lost
                speaks = min(other for other in range(ranks) if other != culprit)
                if rank != culprit or not error:
                    self._over.wait(_BEAT * 1.5)  # the others read the same
                    if self._over.is_set() and not error:
                        return
                    _say_and_exit(words if rank == speaks else "")
            self._over.wait(_BEAT)
        if not self._error:
            with contextlib.suppress(Exception):  # rank 0 may have ended before
                store.set(f"beat/{rank}", json.dumps({**self._beat(0.0, "", 0.0, main), "done": True}))

    def _beat(self, now: float, error: str, still: float, main: int | None) -> dict[str, Any]:
        who = f"{socket.gethostname()}, process {os.getpid()}"
        return {
            "moves": self._moves,
            "place": self._place,
            "who": who,
            "still": still,
            "count": now,
            "error": error,
            "line": _line_of(main),
        }

    def _lost(self, beats: dict[int, Any], silent: dict[int, float], ranks: int) -> tuple[int, str] | None:
        """Return the rank that is lost and the message; None while all is well."""
        for rank, beat in beats.items():
            at = f"rank {rank} of {ranks} ({beat['who']})"
            if beat.get("done"):
                continue
            if beat["error"]:
                return rank, f"{at} ended at {beat['place']} by {beat['error']}"
            if silent[rank] > self.dead_after:
                return (
                    rank,
                    f"{at} has died or is stopped: no sign of life for {silent[rank]:.0f} s, since {beat['place']}",
                )
        stuck = {rank: beat for rank, beat in beats.items() if beat["still"] > self.timeout and not beat.get("done")}
        if len(stuck) < len([beat for beat in beats.values() if not beat.get("done")]) or not stuck:
            return None
        # Of two at the same place the one that waits is inside torch, in a collective.
        culprit = min(stuck, key=lambda rank: (stuck[rank]["moves"], f"{os.sep}torch{os.sep}" in stuck[rank]["line"]))
        beat = stuck[culprit]
        others = "; ".join(f"rank {r} waits at {b['place']}" for r, b in beats.items() if r != culprit)
        words = f"rank {culprit} of {ranks} ({beat['who']}) hangs for {beat['still']:.0f} s at {beat['place']}"
        return culprit, f"{words}, in {beat['line']}; {others}"


def _store(trainer: Trainer) -> Any:
    """Return a store of our own: the process group's is locked by whoever waits in it."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    wait = timedelta(seconds=30)
    port = [0]
    store = None
    if trainer.global_rank == 0:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            host, 0, None, True, wait, wait_for_workers=False
        )
        port = [store.port]
    torch.distributed.broadcast_object_list(port, src=0)
    return store or torch.distributed.TCPStore(  # type: ignore[attr-defined]
        host, port[0], None, False, wait, wait_for_workers=False
    )


def _of_a_collective(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        word in words for word in ("gloo", "nccl", "connection closed", "timed out", "connection reset", "socket")
    )


def _is_secondary(error: str) -> bool:
    return any(
        word in error.lower() for word in ("gloo", "nccl", "connection closed", "timed out", "disterror", "reset by")
    )


def _line_of(thread: int | None) -> str:
    frame = sys._current_frames().get(thread or 0)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, {frame.f_code.co_name}" if frame is not None else "?"


def _say_and_exit(words: str) -> None:
    """End the process from its thread: the main one waits in a collective that nobody can call off."""
    if words:
        sys.stderr.write(f"firstlight: {words}\n")
        sys.stderr.flush()
    time.sleep(_GRACE if not words else 0.5)
    os._exit(EXIT_CODE)
