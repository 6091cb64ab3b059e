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
    """Keeps requests; tests set its fault.

    Attributes:
        fault: The response to every request: a status, or ``hang``; None is a correct response.
        questions: Headers and body of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault: int | str | None = None
        self.questions: list[tuple[dict[str, str], str]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode(errors="replace")
        self.server.questions.append((dict(self.headers), body))
        if isinstance(self.server.fault, int):
            self._answer(self.server.fault, {"error": "x"})
        elif self.server.fault == "hang":
            self.server.over.wait(100)
        elif self.path == "/oidc/token":
            self._answer(200, {"access_token": ACCESS, "expires_in": 3600, "token_type": "Bearer"})
        else:
            self._answer(200, {"data": answer(body)})

    do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815 - names that the server calls

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(text)


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
