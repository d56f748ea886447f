"""Captures log records in a test.

Replaces pytest's logging plugin, which slows down every test: it visits each of about 600 loggers.
"""

import logging


class Logs(logging.Handler):
    """A logging handler that keeps all records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        """The formatted records, including tracebacks."""
        return "\n".join(map(self.format, self.records))

    @property
    def errors(self) -> list[logging.LogRecord]:
        return [record for record in self.records if record.levelno == logging.ERROR]
