"""A local server that answers the requests of huggingface_hub for models: create, upload, list, download, validate."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

import huggingface_hub.constants
import pytest
import transformers.utils.hub
import yaml

TOKEN = "hf_" + "t" * 30
_LARGE = ".safetensors"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Repository:
    """A model on the server.

    Attributes:
        commits: Files of each commit by its name, the last the newest.
        refs: Commit of each branch and tag.
        private: Whether it needs the token.
        is_gated: Whether nobody has access.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    is_gated: bool = False

    def commit(self, changed: dict[str, bytes | None], branch: str = "main") -> str:
        """Change files, or delete those that are None; return the name of the commit."""
        files: dict[str, Any] = {**self.commits.get(self.refs.get(branch, ""), {}), **changed}
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = {path: content for path, content in files.items() if content is not None}
        self.refs[branch] = name
        return name

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        """Return the files of a branch, tag or commit; None if there is none."""
        return self.commits.get(self.refs.get(revision, revision))


class FakeHub(ThreadingHTTPServer):
    """Attributes: the models by name, the requests ("METHOD path"), the stored large files, and statuses of errors."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}
        self.failing: int | None = None
        self.failing_reads: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def check_metadata(text: str) -> list[str]:
    """Return the problems of a card's metadata, by the rules of the hub's documentation of model cards."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.S)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["empty or missing yaml metadata"]
    strings = ("license", "pipeline_tag", "library_name")
    problems = [f'"{name}" must be a string' for name in strings if not isinstance(data.get(name, ""), str)]
    arrays = {name: data.get(name, []) for name in ("tags", "datasets", "metrics")}
    problems += [f'"{name}" must be an array of strings' for name in arrays if not _are_strings(arrays[name])]
    names = [*arrays["datasets"], *filter(None, [data.get("base_model")])]
    problems += [f"{name!r} is not a name on the hub" for name in names if not _HUB_NAME.fullmatch(name)]
    for model in data.get("model-index", []):
        for result in model.get("results", []):
            where = f'"model-index" of {model.get("name")}'
            if not (isinstance(model.get("name"), str) and result.get("task", {}).get("type")):
                problems.append(f"{where} needs a name and task.type")
            if not {"name", "type"} <= result.get("dataset", {}).keys():
                problems.append(f"{where} needs dataset.name and dataset.type")
            if not all({"type", "value"} <= metric.keys() for metric in result.get("metrics", [{}])):
                problems.append(f"{where} needs metrics.type and metrics.value")
    return problems


def _are_strings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = unquote(urlparse(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        is_read = self.command in ("GET", "HEAD")
        if not is_read and path != "/api/validate-yaml" and (refusal := self._write_refusal()):
            self._json({"error": "no"}, status=refusal)
            return
        if is_read and self.server.failing_reads:
            headers = {"X_Error_Message": "Invalid credentials in Authorization header"}
            self._json({}, self.server.failing_reads, **(headers if self.server.failing_reads == 401 else {}))
            return
        for pattern, answer in _READS if is_read else _WRITES:
            if found := re.fullmatch(pattern, path):
                answer(self, *found.groups())
                return
        self._json({"error": f"unknown path {path}"}, status=404)

    do_GET = do_HEAD = do_PUT = do_POST = _handle  # noqa: N815 - names that the server calls

    def _write_refusal(self) -> int | None:
        has_token = self.command == "PUT" or self.headers.get("authorization") == f"Bearer {TOKEN}"
        return self.server.failing or (None if has_token else 401)

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(content).encode(), status, **headers)

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _readable(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Return the files of a revision; None after the response of a refusal."""
        model = self.server.models.get(name)
        if model is not None and model.is_gated:
            self._json({}, 403, X_Error_Code="GatedRepo")
        elif model is None or (model.private and self.headers.get("authorization") != f"Bearer {TOKEN}"):
            self._json({}, 401, X_Error_Code="RepoNotFound")
        elif (files := model.files(revision)) is None:
            self._json({}, 404, X_Error_Code="RevisionNotFound")
        else:
            return files
        return None

    def whoami(self) -> None:
        has_token = self.headers.get("authorization") == f"Bearer {TOKEN}"
        self._json({"type": "user", "name": "me"} if has_token else {}, 200 if has_token else 401)

    def info(self, name: str, revision: str | None) -> None:
        if (files := self._readable(name, revision or "main")) is not None:
            model = self.server.models[name]
            siblings = [{"rfilename": path} for path in files]
            sha = model.refs.get(revision or "main", revision)
            self._json({"id": name, "sha": sha, "siblings": siblings, "private": model.private, "tags": []})

    def tree(self, name: str, revision: str) -> None:
        if (files := self._readable(name, revision)) is not None:
            self._json([{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (files := self._readable(name, revision)) is None:
            return
        sha = self.server.models[name].refs.get(revision, revision)
        if path in files:
            self._send(files[path], ETag=f'"{_oid(files[path])}"', X_Repo_Commit=sha)
        else:
            self._json({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        is_new = name not in self.server.models
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.models.setdefault(name, Repository(private=bool(private))).refs.setdefault("main", "")
        self.server.models[name].commits.setdefault("", {})
        self._json({"url": f"{self.server.url}/{name}", "id": name}, 200 if is_new else 409)

    def preupload(self, _name: str, _revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = [{**file, "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular"} for file in files]
        self._json({"files": [{**file, "shouldIgnore": False} for file in modes]})

    def batch(self, _name: str) -> None:
        objects = json.loads(self.body)["objects"]
        answers = [{**o, "actions": {"upload": {"href": f"{self.server.url}/large/{o['oid']}"}}} for o in objects]
        self._json({"transfer": "basic", "objects": answers}, content_type="application/vnd.git-lfs+json")

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self._json({})

    def commit(self, name: str, branch: str) -> None:
        changed: dict[str, bytes | None] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                changed[value["path"]] = None
        sha = self.server.models[name].commit(changed, branch)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})

    def validate(self) -> None:
        problems = [{"message": problem} for problem in check_metadata(json.loads(self.body)["content"])]
        self._json({"errors": problems, "warnings": []}, 400 if problems else 200)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


_NAME = r"([^/]+/[^/]+)"
_READS: list[tuple[str, Callable[..., None]]] = [
    (r"/api/whoami-v2", _Handler.whoami),
    (rf"/api/models/{_NAME}(?:/revision/(.+))?", _Handler.info),
    (rf"/api/models/{_NAME}/tree/([^/]+)/?", _Handler.tree),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
_WRITES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/repos/create", _Handler.create),
    (rf"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/large/(\w+)", _Handler.store),
    (rf"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    (r"/api/validate-yaml", _Handler.validate),
]


@contextmanager
def fake_hub(patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a server while the block lasts, to which huggingface_hub sends its requests until the patch is undone."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        patch.setattr(huggingface_hub.constants, name, value)
    # Clients keep the address of their first use; transformers 5.0 has none of its own.
    patch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    patch.setattr(huggingface_hub.create_repo.__self__, "endpoint", server.url)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
