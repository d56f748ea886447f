"""The process that runs parts of the GPU benchmark: parts come in on stdin, rows go out on stdout, all as JSON lines.

python -m benchmarks.gpu_check.worker [module to import first ...]
"""

import importlib
import json
import logging
import os
import sys
import traceback
from typing import Any, TextIO


def main(modules: list[str]) -> None:
    output = _take_stdout()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    for module in modules:
        importlib.import_module(module)
    _send(output, {"ready": True})
    for line in sys.stdin:
        part = json.loads(line)
        _send(output, {"error": _run(part["function"], part["arguments"], output)})


def _run(function: str, arguments: list[str], output: TextIO) -> str | None:
    """Sends the rows of one part. Returns the error that ended it early, in one line."""
    module, _, name = function.rpartition(".")
    try:
        for row in getattr(importlib.import_module(module), name)(*arguments):
            _send(output, {"row": row})
    except Exception as error:
        traceback.print_exc()
        return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:300]
    return None


def _take_stdout() -> TextIO:
    """The original stdout. What libraries print goes to stderr from now on."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def _send(output: TextIO, message: dict[str, Any]) -> None:
    output.write(json.dumps(message, default=str) + "\n")
    output.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
