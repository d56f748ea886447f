"""What is logged while a test runs, in the place of pytest's own: that visits each of 600 loggers in every test.

Knows of logging only.
"""

import logging


class Logs(logging.Handler):
    """Keeps what comes to the root logger."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        """As it would be printed, tracebacks too."""
        return "\n".join(map(self.format, self.records))

    @property
    def errors(self) -> list[logging.LogRecord]:
        return [record for record in self.records if record.levelno == logging.ERROR]
