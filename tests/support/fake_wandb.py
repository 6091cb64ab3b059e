"""A local server that answers the W&B requests of a run, or has one of the faults of servers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40
# The access token that replaces an identity token.
ACCESS = "wb_at_" + "a" * 40
_BUCKET = {"id": "1", "displayName": "run", "description": "", "config": "{}", "sweepName": "", "historyLineCount": 0}
_BUCKET |= {"project": {"id": "1", "name": "p", "entity": {"id": "1", "name": "e"}}}


def answer(body: str) -> dict[str, Any]:
    """Return the answer of a server that works."""
    if "viewer" in body:
        return {"viewer": {"id": "1"}}
    if "UpsertBucket" in body:
        name = json.loads(body)["variables"]["name"]
        return {"upsertBucket": {"bucket": {**_BUCKET, "name": name}, "inserted": True}}
    if "CreateRunFiles" in body:
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
    return {}


class FakeServer(ThreadingHTTPServer):
    """Counts requests; tests set its fault.

    Attributes:
        fault: The response to every request: a status, ``hang``, ``drip``, ``noise``, ``redirect``, ``nobody``; None is
            a correct response.
        fault_of_runs: The same for all requests but that for the owner of the key.
        questions: Headers and body of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault: int | str | None = None
        self.fault_of_runs: int | str | None = None
        self.questions: list[tuple[dict[str, str], str]] = []
        self.over = threading.Event()
        self.elsewhere = "http://127.0.0.1:9/elsewhere"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def history(self) -> list[dict[str, Any]]:
        """Return the rows that were sent, in their order."""
        sent = [json.loads(body) for _, body in self.questions if body.startswith("{")]
        chunks = [one["files"]["wandb-history.jsonl"] for one in sent if "wandb-history.jsonl" in one.get("files", {})]
        return [json.loads(row) for chunk in chunks for row in chunk["content"]]


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode(errors="replace")
        self.server.questions.append((dict(self.headers), body))
        is_viewer = "viewer" in body
        fault = self.server.fault if is_viewer or self.server.fault else self.server.fault_of_runs
        if isinstance(fault, int):
            self._answer(fault, b'{"error": "x"}')
        elif fault == "hang":
            self.server.over.wait(100)
        elif fault == "drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.over.wait(0.2):
                self.wfile.write(b" ")
        elif fault == "noise":
            self._answer(200, b"<html>Please log in to this network</html>")
        elif fault == "redirect":
            self._answer(302, b"", location=self.server.elsewhere)
        elif fault == "nobody":
            self._answer(200, b'{"data": {"viewer": null}}')
        elif self.path == "/oidc/token":
            token = {"access_token": ACCESS, "expires_in": 3600, "token_type": "Bearer"}
            self._answer(200, json.dumps(token).encode())
        else:
            self._answer(200, json.dumps({"data": answer(body)}).encode())

    do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815 - names that the server calls

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), "content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Run a server while the block lasts."""
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
