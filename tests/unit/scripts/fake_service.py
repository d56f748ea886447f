"""Stands in for `python -m serve`: the same command line and paths, canned answers.

    fake_service.py FOLDER --port N

FOLDER/behaviour.json says how it behaves; it leaves there what it was asked, who held `alive.lock`, and how it ended.
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

FOLDER = Path(sys.argv[1])
BEHAVIOUR: dict[str, Any] = json.loads((FOLDER / "behaviour.json").read_text())
STATUSES = iter(BEHAVIOUR.get("statuses", ["READY"]))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health-check":
            self.answer({"status": next(STATUSES, "READY")})
        elif self.path == "/outputs/1":
            self.answer_bytes(b"a png", "image/png")
        else:
            self.answer(BEHAVIOUR["polls"].pop(0))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = {
            "path": self.path,
            "headers": {key.lower(): value for key, value in self.headers.items()},
            "body": body,
        }
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
        print("a request was answered", flush=True)


def end(number: int, _: object) -> None:
    (FOLDER / "ended").write_text(signal.Signals(number).name)
    if not BEHAVIOUR.get("does_not_end"):
        sys.exit(0)


def main() -> None:
    print("loading the models", flush=True)
    if "exits" in BEHAVIOUR:
        sys.exit(BEHAVIOUR["exits"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    # A child of its own that holds the lock as long as it lives, and that ends with nothing but its group.
    lock = (FOLDER / "alive.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    subprocess.Popen(["sleep", "600"], pass_fds=[lock.fileno()])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
