"""What a W&B run wrote to disk, read without the network and without wandb's private reader.

The file is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB (the header counts in the first). A block holds
chunks, ``<u32 crc><u16 length><u8 type>`` and the payload; a record is one whole chunk or a chain of them; what is
left of a block when no chunk header fits is padding. Each record is a protobuf ``Record``.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight._require import require
from firstlight.tracking._import_wandb import import_wandb

_MAGIC = b":W&B\xe1\xbe\x00"
_BLOCK = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class OfflineRun:
    """One W&B run as its ``.wandb`` file tells it.

    ``history`` holds one dict a row, in the order written; nested keys become nested dicts. ``metrics`` maps a metric
    name or pattern to its definition. ``exit_code`` is None for a run that did not finish; ``truncated`` says that the
    file ends within a record, as after a kill: everything before that is here.
    """

    path: Path
    run_id: str
    name: str
    project: str
    entity: str
    group: str
    job_type: str
    notes: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    artifacts: tuple[Mapping[str, Any], ...]
    files: tuple[str, ...]
    alerts: tuple[Mapping[str, Any], ...]
    exit_code: int | None
    truncated: bool

    def series(self, key: str) -> tuple[list[int], list[Any]]:
        """Return the steps (``trainer/global_step``, else W&B's own) and the values logged under ``key``."""
        rows = [row for row in self.history if key in row]
        steps = [int(row.get("trainer/global_step", row.get("_step", i))) for i, row in enumerate(rows)]
        return steps, [row[key] for row in rows]


def read_offline_run(path: str | Path) -> OfflineRun:
    """Read a ``.wandb`` file, or the run folder that holds one (``offline-run-*``, ``run-*``, ``latest-run``).

    Raises:
        FileNotFoundError: there is no such file, or no ``.wandb`` file in the folder.
        ValueError: it is not a W&B file, or it is damaged before its end.
        ModuleNotFoundError: wandb, whose protobuf describes the records, is not installed.
    """
    file = _locate(Path(path))
    record_type = import_wandb("proto.wandb_internal_pb2").Record
    chunks = _Chunks(file.read_bytes(), file)
    collected = _Collected()
    for payload in chunks.records():
        record = record_type()
        record.ParseFromString(payload)
        collected.add(record)
    return collected.freeze(file, truncated=chunks.truncated)


def run_file(run_dir: Path) -> Path | None:
    """Return the ``.wandb`` file of a run folder, None if there is none."""
    return next(iter(sorted(run_dir.glob("*.wandb"))), None)


def ends_well(run_dir: Path) -> bool:
    """Say whether the run in this folder was closed, from the end of its file alone."""
    file = run_file(run_dir)
    if file is None:
        return False
    record_type = import_wandb("proto.wandb_internal_pb2").Record
    try:
        with file.open("rb") as opened:
            start = max(0, file.stat().st_size - 2 * _BLOCK) // _BLOCK * _BLOCK  # a block begins with a record's part
            opened.seek(start)
            chunks = _Chunks(opened.read(), file, start)
        kinds = [record_type.FromString(payload).WhichOneof("record_type") for payload in chunks.records()]
    except Exception:  # whatever is wrong with the file: it does not end well
        return False
    return "exit" in kinds and not chunks.truncated


def _locate(path: Path) -> Path:
    if path.is_dir():
        found = run_file(path)
        if found is None:
            raise FileNotFoundError(f"no .wandb file in {path}; give an offline-run-* folder or a .wandb file")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"no W&B run at {path}")
    return path


class _Chunks:
    """Splits the bytes of a file, from ``start`` on, into records; ``truncated`` is known after the last one."""

    def __init__(self, data: bytes, file: Path, start: int = 0) -> None:
        self._data, self._file = data, file
        self._at = 0 if start else len(_MAGIC)
        self.truncated = False
        if not start:
            require(data[: len(_MAGIC)] == _MAGIC, "path", str(file), "a W&B run file (its first bytes are not :W&B)")

    def records(self) -> Iterator[bytes]:
        parts: list[bytes] = []
        for kind, payload in self._chunks():
            if kind in (_WHOLE, _FIRST):
                parts = []
            elif not parts:
                continue  # the rest of a record that began before ``start``
            parts.append(payload)
            if kind in (_WHOLE, _LAST):
                yield b"".join(parts)
                parts = []
        self.truncated = self.truncated or bool(parts)

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        data, at = self._data, self._at
        while at < len(data):
            left_in_block = _BLOCK - at % _BLOCK
            if left_in_block < _CHUNK.size:
                at += left_in_block
                continue
            end = at + _CHUNK.size
            header = data[at:end]
            if len(header) < _CHUNK.size or not (any(header) or any(data[at:])):  # cut, or zeros after a crash
                self.truncated = True
                return
            crc, length, kind = _CHUNK.unpack_from(data, at)
            payload = data[end : end + length]
            if len(payload) < length:
                self.truncated = True
                return
            if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or zlib.crc32(payload, zlib.crc32(bytes([kind]))) != crc:
                raise ValueError(f"{self._file} is damaged at byte {at}: the checksum does not fit")
            yield kind, payload
            at = end + length


class _Collected:
    """What the records said so far."""

    def __init__(self) -> None:
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.alerts: list[dict[str, Any]] = []
        self.exit_code: int | None = None

    def add(self, record: Any) -> None:
        handler = getattr(self, f"_add_{record.WhichOneof('record_type')}", None)
        if handler is not None:  # telemetry, system statistics and console output are not read
            handler(record)

    def _add_run(self, record: Any) -> None:
        self.run = record.run
        _update(self.config, record.run.config.update)

    def _add_config(self, record: Any) -> None:
        _update(self.config, record.config.update)
        _remove(self.config, record.config.remove)

    def _add_summary(self, record: Any) -> None:
        _update(self.summary, record.summary.update)
        _remove(self.summary, record.summary.remove)

    def _add_history(self, record: Any) -> None:
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        self.history.append(row)

    def _add_metric(self, record: Any) -> None:
        metric = record.metric
        definition: dict[str, Any] = {"step_metric": metric.step_metric or None}
        definition["step_sync"] = metric.options.step_sync
        definition["hidden"] = metric.options.hidden
        definition["summary"] = tuple(f.name for f, on in metric.summary.ListFields() if on)
        self.metrics[metric.name or metric.glob_name] = definition

    def _add_artifact(self, record: Any) -> None:
        artifact = record.artifact
        self.artifacts.append(
            {
                "name": artifact.name,
                "type": artifact.type,
                "digest": artifact.digest,
                "aliases": tuple(artifact.aliases),
                "metadata": json.loads(artifact.metadata) if artifact.metadata else {},
                "files": {entry.path: entry.local_path for entry in artifact.manifest.contents},
            }
        )

    def _add_files(self, record: Any) -> None:
        self.files += [item.path for item in record.files.files if item.path not in self.files]

    def _add_alert(self, record: Any) -> None:
        alert = record.alert
        self.alerts.append({"title": alert.title, "text": alert.text, "level": alert.level})

    def _add_exit(self, record: Any) -> None:
        self.exit_code = record.exit.exit_code

    def freeze(self, file: Path, *, truncated: bool) -> OfflineRun:
        run = self.run
        self.config.pop("_wandb", None)  # wandb's notes to itself
        return OfflineRun(
            path=file,
            run_id=run.run_id if run else file.stem.removeprefix("run-"),
            name=run.display_name if run else "",
            project=run.project if run else "",
            entity=run.entity if run else "",
            group=run.run_group if run else "",
            job_type=run.job_type if run else "",
            notes=run.notes if run else "",
            tags=tuple(run.tags) if run else (),
            config=self.config,
            history=tuple(self.history),
            summary=self.summary,
            metrics=self.metrics,
            artifacts=tuple(self.artifacts),
            files=tuple(self.files),
            alerts=tuple(self.alerts),
            exit_code=self.exit_code,
            truncated=truncated,
        )


def _keys(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _update(target: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *parents, last = _keys(item)
        place = target
        for key in parents:
            inner = place.get(key)
            place[key] = place = inner if isinstance(inner, dict) else {}
        place[last] = json.loads(item.value_json)


def _remove(target: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *parents, last = _keys(item)
        place: Any = target
        for key in parents:
            place = place.get(key, {})
        place.pop(last, None)
