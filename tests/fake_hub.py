"""A hub on this machine: the few addresses of the Hugging Face API that fetching a model asks."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """Files at one commit that all of `revisions` name. `gated`: asks for a licence. `cut`: files sent only half."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    gated: bool = False
    cut: set[str] = field(default_factory=set)


@dataclass
class Hub:
    """Repositories by id, and the paths that were asked for."""

    repositories: dict[str, Repository]
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[str]:
        return [path for path in self.asked if path.startswith("GET") and "/resolve/" in path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def serve(**repositories: Repository) -> Iterator[Hub]:
    """A hub at `url`; `owner__name` as keyword is the id `owner/name`."""
    hub = Hub({name.replace("__", "/"): repository for name, repository in repositories.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(self.path.split("?")[0])
            hub.asked.append(f"{self.command} {path}")
            rest = path.partition("/api/models/")[2]
            name = next((name for name in hub.repositories if (rest or path[1:]).startswith(name + "/")), None)
            if name is None:
                return self._send(
                    401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                )
            repository, parts = hub.repositories[name], (rest or path[1:])[len(name) + 1 :].split("/")
            if parts == ["refs"]:
                branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}]
                tags = [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": COMMIT}]
                return self._json({"branches": branches, "tags": tags, "converts": []})
            if parts[1] not in repository.revisions:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if rest:
                if parts[0] == "revision":
                    siblings = [{"rfilename": file, "size": len(data)} for file, data in repository.files.items()]
                    return self._json({"id": name, "sha": COMMIT, "siblings": siblings, "gated": repository.gated})
                tree = [{"type": "file", "path": f, "size": len(d), "oid": _id(d)} for f, d in repository.files.items()]
                return self._json(tree)
            if repository.gated:
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
            file = "/".join(parts[2:])
            data = repository.files[file]
            return self._send(
                200, data, {"ETag": f'"{_id(data)}"', "X-Repo-Commit": COMMIT}, cut=file in repository.cut
            )

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)
                if cut:
                    self.wfile.flush()
                    self.connection.close()

    return Handler


def _id(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
