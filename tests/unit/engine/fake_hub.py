"""A fake Hugging Face Hub on loopback. It serves one repository from a folder, and errors for other repositories."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `folder` as `owner/name` at REVISION. `errors` maps repositories to a status and an `X-Error-Code`."""

    def __init__(self, folder: Path, errors: dict[str, tuple[int, str]]) -> None:
        self.folder = folder
        self.errors = errors
        self.authorizations: set[str | None] = set()
        """`Authorization` headers of all requests."""
        self.requested_files: set[str] = set()
        self.endpoint = ""

    @contextmanager
    def serving(self) -> Iterator["FakeHub"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def respond(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        for repository, (status, code) in self.errors.items():
            if f"/{repository}/" in path:
                return status, {"X-Error-Code": code}, b""
        if path == f"/api/models/owner/name/tree/{REVISION}":
            return 200, {"Content-Type": "application/json"}, json.dumps(self._tree()).encode()
        file = path.removeprefix(f"/owner/name/resolve/{REVISION}/")
        if not (self.folder / file).is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        self.requested_files.add(file)
        content = (self.folder / file).read_bytes()
        return 200, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": REVISION}, content

    def _tree(self) -> list[dict[str, object]]:
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        return [
            {
                "type": "file",
                "path": str(file.relative_to(self.folder)),
                "size": file.stat().st_size,
                "oid": _digest(file.read_bytes()),
            }
            for file in files
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._respond(with_body=False)

            def do_GET(self) -> None:
                self._respond(with_body=True)

            def _respond(self, with_body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.authorizations.add(self.headers.get("Authorization"))
                status, headers, body = hub.respond(path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
