"""As much of a W&B server as a run needs, on this machine, with the faults that a network has."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from firstlight.tracking import OfflineRun

KEY = "a1b2c3d4e5" * 4  # well-formed, and of no account
FAULTS = ("resets", "refuses", "fails", "hangs")


class WandbServer:
    """Takes runs at ``url``. ``fault`` is what it does to every request from now on, ``None`` is nothing.

    ``rows`` holds the history of each run by its line number, as a server does: a line that comes twice replaces the
    first. ``resume`` lets it know a run that is resumed.
    """

    def __init__(self) -> None:
        self.fault: str | None = None
        self.resumes: dict[str, Any] | None = None
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.exit_codes: dict[str, int] = {}
        self.released = threading.Event()
        served = type("Served", (_Handler,), {"server_of_runs": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), served)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a helper that was killed hangs up
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def resume(self, run: OfflineRun) -> None:
        """Say of every run from now on that it is there, as ``run`` left it; one that has no rows is new."""
        last = run.history[-1]
        counts = {"historyLineCount": len(run.history), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(last)]), "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
        known = {"id": "b", "name": run.run_id, "displayName": run.run_id, "config": "{}", "tags": []}
        self.resumes = {**known, **counts, **tails, "summaryMetrics": json.dumps(last)}

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "e", "name": "me"}
        if "viewer" in query:
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "query RunResumeStatus" in query:
            there = self.resumes if variables.get("name") in self.rows else None
            return {"model": {"id": "m", "name": "p", "entity": entity, "bucket": there}}
        if "mutation UpsertBucket" in query:
            run = {"id": "b", "name": variables.get("name"), "displayName": "run", "description": "", "config": "{}"}
            project = {"id": "p", "name": variables.get("project") or "p", "entity": entity}
            bucket = {**run, "sweepName": None, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": self.resumes is None}}
        if "mutation CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/files/{name}"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def take(self, run: str, stream: dict[str, Any]) -> None:
        history = stream.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, line in enumerate(history["content"], history["offset"]):
            self.rows.setdefault(run, {})[number] = json.loads(line)
        if stream.get("complete"):
            self.exit_codes[run] = stream["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_runs: WandbServer

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._read()
        self._reply({})

    def do_POST(self) -> None:
        asked = json.loads(self._read() or b"{}")
        server = self.server_of_runs
        if server.fault:
            self._reply({})
        elif self.path.endswith("/file_stream"):
            server.take(self.path.split("/")[-2], asked)
            self._reply({})
        else:
            self._reply({"data": server.answer(asked.get("query", ""), asked.get("variables", {}))})

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, content: dict[str, Any]) -> None:
        fault = self.server_of_runs.fault
        if fault == "resets":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if fault == "hangs":
            self.server_of_runs.released.wait()
            self.close_connection = True
            return
        body = json.dumps(content if fault is None else {"errors": [{"message": "refused"}]}).encode()
        self.send_response({"refuses": 401, "fails": 500}.get(fault or "", 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""
