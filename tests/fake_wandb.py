"""A W&B server on the loopback, as far as `wandb.Api`, online runs without artifacts and `wandb sync` ask it."""

import gzip
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

KEY = "0" * 40


def environment(home: Path, **more: str) -> dict[str, str]:
    """Ours, with no W&B setting but `more`, another home and this checkout's code."""
    home.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NETRC"))}
    code = str(Path(__file__).resolve().parents[1])
    return {**kept, "HOME": str(home), "PYTHONPATH": code, **more}


def inspect(file: Path, home: Path) -> list[dict[str, Any]]:
    """The records of a run's offline file: what `wandb leet inspect --json FILE` prints, sooner."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", file, file.parents[1]]
    read = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


def known_run(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What W&B knows of a run after its offline file was sent: as the node of its API, and `history`."""
    runs = [record["run"] for record in records if record["type"] == "run"]
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for record in records:
        if record["type"] == "run":
            config |= record["run"]["config"]["update"]
        elif record["type"] == "config":
            config |= record["config"]["update"]
        elif record["type"] == "summary":
            summary |= record["summary"]["update"]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    exits = [record["exit"].get("exit_code") for record in records if record["type"] == "exit"]
    return {
        "name": runs[0]["run_id"],
        "displayName": runs[0]["display_name"],
        "group": runs[0]["run_group"],
        "jobType": runs[0]["job_type"],
        "tags": runs[-1].get("tags", []),
        "state": "crashed" if not exits else "finished" if exits[-1] == 0 else "failed",
        "config": config,
        "summary": summary,
        "history": history,
    }


@dataclass
class Trouble:
    """How a server fails.

    Attributes:
        kind: `hangs` takes a request and never answers, `drops` closes the connection, `says` answers with `status`.
        status: of the answer: 500, or 401 as for a key that has expired.
        after: requests that go well before.
        every: of those that follow, only each such one fails.
    """

    kind: Literal["hangs", "drops", "says"]
    status: int = 500
    after: int = 0
    every: int = 1


class FakeWandb:
    """What the server knows, and what it was asked.

    Attributes:
        runs: (entity, project) -> runs as `known_run` gives them.
        asked: the operations that came, in order.
        unknown: those that it could not answer.
        saved: the workspaces that were saved, as the variables of the request.
        page: the most runs that it gives at once.
        sent: (entity, project, run) -> the rows of its history that were sent here, in order, doubled where they were
            sent twice.
        summaries: the same -> the last summary that was sent.
        configs: the same -> the config that was sent last.
        url: where this is served.
        trouble: how it fails, None while it is well.
        requests: how many came.
    """

    def __init__(self, runs: dict[tuple[str, str], list[dict[str, Any]]], page: int = 2) -> None:
        self.runs, self.page = runs, page
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.saved: list[dict[str, Any]] = []
        self.sent: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self.summaries: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.configs: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.url = ""
        self.trouble: Trouble | None = None
        self.requests = 0

    def fails(self) -> Trouble | None:
        """Count a request, and say how it fails, if it does."""
        self.requests += 1
        trouble = self.trouble
        if trouble is None or self.requests <= trouble.after or (self.requests - trouble.after) % trouble.every:
            return None
        return trouble

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` for a GraphQL request."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else query
        self.asked.append(operation)
        if operation in ("Viewer", "GetDefaultEntity"):
            teams = {"edges": []}
            who = {"id": "1", "entity": "someone", "username": "someone", "email": "", "flags": "{}", "teams": teams}
            return {"viewer": who}
        if operation == "RunResumeStatus":
            return {"model": self._resume_status(variables)}
        if operation == "UpsertBucket":
            place = (variables["entity"] or "someone", variables["project"], variables["name"])
            if variables["config"]:
                self.configs[place] = json.loads(variables["config"])
            entity = {"id": "1", "name": place[0]}
            project = {"id": "1", "name": variables["project"], "entity": entity}
            known = {"id": "1", "name": variables["name"], "displayName": "", "description": "", "config": "{}"}
            bucket = {**known, "sweepName": None, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":  # as if it were here already, so that its files are not sent
            sequence = {"id": "1", "latestArtifact": {"id": "1", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "1", "state": "COMMITTED", "artifactSequence": sequence}}}
        if operation == "UpsertView2":
            self.saved.append(variables)
            return {"upsertView": {"view": {"id": "view", "name": "nw-view-v"}, "inserted": True}}
        if "entity" in variables and "project" in variables:
            runs = self.runs.get((variables["entity"], variables["project"]))
            if runs is None:
                return {"project": None}
            if operation == "Runs":
                return {"project": self._page(runs, variables)}
            name = next((variables[key] for key in ("name", "runName", "run") if key in variables), None)
            named = [run for run in runs if run["name"] == name]
            if named and (answer := self._of_run(operation, named[0], variables)) is not None:
                return {"project": {"run": answer}}
        self.unknown.append(operation)
        return {}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        place = (variables["entity"] or "someone", variables["project"], variables["name"])
        if place not in self.sent:
            return None
        rows = self.sent[place]
        bucket = {
            "name": variables["name"],
            "displayName": "",
            "summaryMetrics": json.dumps(self.summaries.get(place, {})),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(self.configs.get(place, {})),
            "tags": [],
            "notes": None,
            "wandbConfig": "{}",
        }
        return {"id": "1", "name": place[1], "entity": {"id": "1", "name": place[0]}, "bucket": bucket}

    def stream(self, path: str, files: dict[str, Any]) -> None:
        """A part of a run's files: `/files/ENTITY/PROJECT/RUN/file_stream`."""
        _, _, entity, project, run, _ = path.split("/")
        rows = self.sent.setdefault((entity, project, run), [])
        if history := files.get("wandb-history.jsonl"):
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        if summary := files.get("wandb-summary.json"):
            self.summaries[entity, project, run] = json.loads(summary["content"][-1])

    def _page(self, runs: list[dict[str, Any]], variables: dict[str, Any]) -> dict[str, Any]:
        filters = json.loads(variables["filters"])
        assert filters.keys() <= {"group"}
        wanted = [run for run in runs if run["group"] == filters.get("group", run["group"])]
        start = int(variables.get("cursor") or 0)
        shown = wanted[start : start + min(self.page, variables["perPage"])]
        edges = [{"node": self._node(run), "cursor": str(start + i + 1)} for i, run in enumerate(shown)]
        end = start + len(shown)
        info = {"endCursor": str(end), "hasNextPage": end < len(wanted)}
        runs_found = {"edges": edges, "pageInfo": info}
        return {"internalId": "1", "runCount": len(wanted), "readOnly": False, "runs": runs_found}

    def _node(self, run: dict[str, Any]) -> dict[str, Any]:
        user = {"name": "someone", "username": "someone"}
        fixed = dict.fromkeys(("sweepName", "commit", "description", "notes"))
        dates = dict.fromkeys(("createdAt", "heartbeatAt"), "2026-11-21T00:00:00")
        shown = {key: run[key] for key in ("name", "displayName", "group", "jobType", "tags", "state")}
        return {
            **fixed,
            **dates,
            **shown,
            "id": run["name"],
            "projectId": 1,
            "readOnly": False,
            "user": user,
            "config": json.dumps({key: {"value": value, "desc": None} for key, value in run["config"].items()}),
            "summaryMetrics": json.dumps(run["summary"]),
            "systemMetrics": "{}",
            "historyLineCount": len(run["history"]),
            "historyKeys": self._keys(run),
        }

    def _keys(self, run: dict[str, Any]) -> dict[str, Any]:
        names = {name for row in run["history"] for name in row}
        counts = {name: {"typeCounts": [{"type": "number", "count": 1}]} for name in names}
        return {"lastStep": max((row["_step"] for row in run["history"]), default=-1), "keys": counts}

    def _of_run(self, operation: str, run: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any] | None:
        if operation == "RunHistoryKeys":
            return {"historyKeys": self._keys(run)}
        if operation == "RunParquetHistory":
            live = [{"_step": row["_step"]} for row in run["history"]]
            return {"parquetHistory": {"parquetUrls": [], "liveData": live}}
        if operation == "HistoryPage":
            first, end = variables["minStep"], variables["maxStep"]
            rows = [row for row in run["history"] if first <= row["_step"] < end]
            return {"history": [json.dumps(row) for row in rows[: variables["pageSize"]]]}
        return None


@contextmanager
def serve(fake: FakeWandb) -> Iterator[str]:
    """The base URL of a server that answers as `fake` does."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if trouble := fake.fails():
                self.fail(trouble)
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            content: dict[str, Any] = {}
            if self.path.endswith("/file_stream"):
                fake.stream(self.path, json.loads(body).get("files") or {})
            elif self.path == "/graphql":  # all else is W&B's telemetry
                asked = json.loads(body)
                content = {"data": fake.answer(asked["query"], asked.get("variables") or {})}
            answer = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def fail(self, trouble: Trouble) -> None:
            while trouble.kind == "hangs" and fake.trouble is trouble:
                time.sleep(0.1)
            if trouble.kind == "says":
                self.send_response(trouble.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.close_connection = True

        def do_PUT(self) -> None:
            self.do_POST()

        do_GET = do_PUT

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        yield fake.url
    finally:
        fake.trouble = None
        server.shutdown()
        server.server_close()
        thread.join()
