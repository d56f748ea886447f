"""Stands in for `python -m serve`: the same command line and paths, canned answers.

Started in a folder whose `behaviour.json` says how it behaves; it leaves there what it was asked, a lock that it and
its child hold while they live, and the signal that it was last sent.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path.cwd()
BEHAVIOUR: dict[str, Any] = json.loads((FOLDER / "behaviour.json").read_text())
STATUSES = iter(BEHAVIOUR.get("statuses", ["READY"]))


class Handler(BaseHTTPRequestHandler):
    health_checks = 0

    def do_GET(self) -> None:
        if self.path == "/health-check":
            Handler.health_checks += 1
            self.answer({"status": next(STATUSES, "READY")})
        elif self.path == "/outputs/1":
            self.answer_bytes(b"a png", "image/png")
        else:
            self.answer(BEHAVIOUR["polls"].pop(0))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = {"path": self.path, "headers": headers, "body": body, "health_checks": self.health_checks}
        (FOLDER / "asked.json").write_text(json.dumps(asked))
        if BEHAVIOUR.get("interrupts_its_client"):
            os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
        self.answer(BEHAVIOUR["prediction"], BEHAVIOUR.get("code", 201), BEHAVIOUR.get("headers", {}))

    def answer(self, value: object, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer_bytes(json.dumps(value).encode(), "application/json", code, headers or {})

    def answer_bytes(self, body: bytes, kind: str, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def end(number: int, _: object) -> None:
    (FOLDER / "ended").write_text(signal.Signals(number).name)
    if BEHAVIOUR.get("interrupts_its_client_at_its_end"):
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    if not BEHAVIOUR.get("does_not_end"):
        sys.exit(0)


def main() -> None:
    print("loading the models", flush=True)
    if "fault" in BEHAVIOUR:
        print(f"serve: {BEHAVIOUR['fault']}", flush=True)
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    # A child of its own that holds the lock as long as it lives, and that ends with nothing but its group.
    lock = (FOLDER / "alive.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
    print(f"ready: http://127.0.0.1:{server.server_port} (Ray at 127.0.0.1:6379; Ctrl-C stops)", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
