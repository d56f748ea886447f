"""A fake `python -m serve` with prepared responses.

It reads `behaviour.json` in its working folder. It writes the last request and the last signal there, and holds
`alive.lock`, together with its child process.
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
            self.respond({"status": next(STATUSES, "READY")})
        elif self.path == "/outputs/1":
            self.respond_bytes(b"a png", "image/png")
        else:
            self.respond(BEHAVIOUR["polls"].pop(0))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = {"path": self.path, "headers": headers, "body": body, "health_checks": self.health_checks}
        (FOLDER / "request.json").write_text(json.dumps(request))
        if BEHAVIOUR.get("interrupts_parent"):
            os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
        self.respond(BEHAVIOUR["prediction"], BEHAVIOUR.get("code", 201), BEHAVIOUR.get("headers", {}))

    def respond(self, value: object, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.respond_bytes(json.dumps(value).encode(), "application/json", code, headers or {})

    def respond_bytes(
        self, body: bytes, media_type: str, code: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": media_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def on_signal(number: int, _: object) -> None:
    (FOLDER / "signal").write_text(signal.Signals(number).name)
    if BEHAVIOUR.get("interrupts_parent_when_stopped"):
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    if not BEHAVIOUR.get("ignores_signals"):
        sys.exit(0)


def main() -> None:
    print("loading the models", flush=True)
    if "error" in BEHAVIOUR:
        print(f"serve: {BEHAVIOUR['error']}", flush=True)
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    # The child holds the lock too, and ends only if its process group is killed.
    lock = (FOLDER / "alive.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
    print(f"ready: http://127.0.0.1:{server.server_port} (Ray at 127.0.0.1:6379; Ctrl-C to stop)", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
