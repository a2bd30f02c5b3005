"""A small stand-in of the Hugging Face hub's HTTP API, on this machine.

It serves directories as model and data set repositories: repository info, tree listings, files with ranges, at the
revisions they are added for. Who brings :data:`TOKEN` may make model repositories and commit to them. ``HF_ENDPOINT``
selects it, which the Hugging Face libraries read when they are imported: use it from a subprocess started with
:meth:`HubStandIn.environment`, or change ``huggingface_hub.constants``.
"""

import base64
import hashlib
import json
import os
import re
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


TOKEN = "hf_stand_in"
USER = "someone"


@dataclass(frozen=True)
class Snapshot:
    """The files of a directory at one moment, as a commit."""

    commit: str
    files: dict[str, Path]

    @classmethod
    def of(cls, directory: Path) -> "Snapshot":
        paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
        files = {path.relative_to(directory).as_posix(): path for path in paths}
        digest = hashlib.sha1()
        for name, path in files.items():
            digest.update(f"{name} {blob_id(path)}\n".encode())
        return cls(digest.hexdigest(), files)


def blob_id(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


class HubStandIn:
    """The server; use it as a context manager, then add repositories at any time."""

    def __init__(self) -> None:
        self.refuses_commits = False
        self.commits: list[str] = []
        """The message of every commit so far."""
        self._pushed: dict[str, tempfile.TemporaryDirectory[str]] = {}
        self.requests: list[str] = []
        """``METHOD path`` of every request so far."""
        self._repositories: dict[tuple[str, str], dict[str, Snapshot]] = {}
        handler = type("Handler", (HubRequestHandler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for folder in self._pushed.values():
            folder.cleanup()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_model(self, name: str, directory: Path, revision: str = "main") -> None:
        """Serve ``directory`` as the model ``name`` (with or without an organization)."""
        self._repositories.setdefault(("model", name), {})[revision] = Snapshot.of(Path(directory))

    def add_dataset(self, name: str, directory: Path, revision: str = "main") -> None:
        """Serve ``directory`` as the data set ``name``; revision ``refs/convert/parquet`` is the hub's conversion."""
        self._repositories.setdefault(("dataset", name), {})[revision] = Snapshot.of(Path(directory))

    def make_repository(self, name: str) -> None:
        """An empty model repository; a file in it appears by :meth:`commit`."""
        self._pushed[name] = tempfile.TemporaryDirectory(prefix="pushed-")
        self.add_model(name, Path(self._pushed[name].name))

    def pushed(self, name: str) -> Path:
        """The files that a repository made by :meth:`make_repository` has by now."""
        return Path(self._pushed[name].name)

    def commit(self, name: str, operations: list[dict[str, Any]]) -> str:
        """Write and delete files as the lines of a commit say; returns the new commit."""
        folder = self.pushed(name)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "header":
                    self.commits.append(value["summary"])
                case "file":
                    path = folder / value["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(value["content"]))
                case "deletedFile":
                    (folder / value["path"]).unlink()
        self.add_model(name, folder)
        return self._repositories["model", name]["main"].commit

    def environment(self, home: Path) -> dict[str, str]:
        """This process's environment for a subprocess that uses the stand-in, with its caches below ``home``."""
        removed = {*OFFLINE_SWITCHES, *PROXY_VARIABLES, "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN"}
        return {
            **{name: value for name, value in os.environ.items() if name not in removed},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def offline_environment(self, home: Path) -> dict[str, str]:
        """The same without a network: only the caches below ``home`` are left."""
        return self.environment(home) | {"HF_HUB_OFFLINE": "1"}

    def find(self, kind: str, path: str) -> tuple[str, dict[str, Snapshot], str] | None:
        """Name, revisions and the rest of ``path`` for the repository whose name ``path`` starts with."""
        parts = path.split("/")
        for length in (2, 1):
            name = "/".join(parts[:length])
            if (kind, name) in self._repositories:
                return name, self._repositories[kind, name], "/".join(parts[length:])
        return None


@dataclass
class Request:
    """A parsed request: a repository, an action on it, a revision and a path."""

    kind: str
    name: str
    revisions: dict[str, Snapshot]
    action: str
    revision: str = "main"
    path: str = ""
    query: dict[str, list[str]] = field(default_factory=dict)

    @property
    def snapshot(self) -> Snapshot | None:
        by_commit = {snapshot.commit: snapshot for snapshot in self.revisions.values()}
        return self.revisions.get(self.revision) or by_commit.get(self.revision)


class HubRequestHandler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self._body()
        if self._is_about_writing():
            return self._answer_writer(body)
        request = self._parse()
        if request is None:
            return self._send_error(404, "RepoNotFound", "Repository not found")
        if request.snapshot is None:
            return self._send_error(404, "RevisionNotFound", f"Invalid rev id: {request.revision}")
        match request.action:
            case "info" | "revision":
                self._send_json(repository_info(request))
            case "tree":
                self._send_tree(request)
            case "paths-info":
                wanted = parse_qs(body.decode()).get("paths", [])
                self._send_json([entry for entry in tree(request.snapshot, "", True) if entry["path"] in wanted])
            case "resolve":
                self._send_file(request)
            case _:
                self._send_error(404, "EntryNotFound", f"the stand-in has no {request.action}")
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _is_about_writing(self) -> bool:
        return bool(
            re.search(r"whoami|validate-yaml|repos/create|/(auth-check|preupload|commit|branch)(/|$)", self.path)
        )

    def _answer_writer(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send_error(401, "", "Invalid username or password.")
        name = "/".join(urlsplit(self.path).path.split("/")[3:5])
        match self.path.split("/")[2 if "/models/" not in self.path else 5].partition("?")[0]:
            case "whoami-v2":
                self._send_json({"type": "user", "name": USER, "orgs": []})
            case "validate-yaml":
                self._send_json({"errors": [], "warnings": []})
            case "repos":
                self._create(json.loads(body))
            case "auth-check":
                self._send_json({})
            case "preupload":
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
                self._send_json({"files": modes})
            case "commit" if self.hub.refuses_commits:
                self._send_error(507, "", "You have exceeded your storage limit.")
            case "commit":
                commit = self.hub.commit(name, [json.loads(line) for line in body.splitlines()])
                url = f"{self.hub.endpoint}/{name}/commit/{commit}"
                self._send_json({"success": True, "commitOid": commit, "commitUrl": url})
            case _:
                self._send_error(404, "EntryNotFound", f"the stand-in cannot {self.path}")
        return None

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted["organization"] or USER
        name = f"{owner}/{wanted['name']}"
        if owner != USER:
            return self._send_error(403, "", f"You don't have the rights to create a model under the namespace {owner}")
        if self.hub.find("model", name):
            return self._send_error(409, "", "You already created this model repo")
        self.hub.make_repository(name)
        return self._send_json({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def _parse(self) -> Request | None:
        url = urlsplit(self.path)
        path = url.path.strip("/")  # split before unquoting: a revision's slashes come quoted
        api = re.fullmatch(r"api/(model|dataset)s/(.+)", path)
        plain = re.fullmatch(r"(datasets/)?(.+)", path)
        kind = api[1] if api else "dataset" if plain and plain[1] else "model"
        found = self.hub.find(kind, api[2] if api else plain[2]) if plain else None
        if found is None:
            return None
        name, revisions, rest = found
        action, revision, inner = [*rest.split("/", 2), "", "", ""][:3]
        return Request(
            kind, name, revisions, action or "info", unquote(revision) or "main", unquote(inner), parse_qs(url.query)
        )

    def _send_tree(self, request: Request) -> None:
        entries = tree(request.snapshot, request.path, request.query.get("recursive", ["false"])[0].lower() == "true")
        if request.path and not entries:
            return self._send_error(404, "EntryNotFound", f"{request.path} does not exist")
        return self._send_json(entries)

    def _send_file(self, request: Request) -> None:
        file = request.snapshot.files.get(request.path)
        if file is None:
            return self._send_error(404, "EntryNotFound", f"{request.path} does not exist")
        content = file.read_bytes()
        headers = {"ETag": f'"{blob_id(file)}"', "X-Repo-Commit": request.snapshot.commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, content, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if start > end:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        return self._send(
            206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        )

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_error(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def repository_info(request: Request) -> dict[str, Any]:
    date = "2024-01-01T00:00:00.000Z"
    return {
        "_id": request.name,
        "id": request.name,
        "sha": request.snapshot.commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "createdAt": date,
        "lastModified": date,
        "siblings": [{"rfilename": name} for name in request.snapshot.files],
    }


def tree(snapshot: Snapshot, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries of ``folder``: its files and folders, those further down included when ``recursive``."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, path in snapshot.files.items():
        if not name.startswith(prefix):
            continue
        parents = [parent.as_posix() for parent in reversed(Path(name).parents) if len(parent.as_posix()) > len(folder)]
        for parent in parents:
            if parent != ".":
                entries[parent] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": parent}
        entries[name] = {"type": "file", "oid": blob_id(path), "size": path.stat().st_size, "path": name}
    return [entry for path, entry in entries.items() if recursive or "/" not in path.removeprefix(prefix)]
