"""Writes docs/performance.md; with `--check`, only reports whether it is up to date.

python -m benchmarks.performance [--check]
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.performance.page import PAGE, render


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with status 1 if the page would change")
    options = parser.parse_args(arguments)
    text = render()
    if options.check:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
