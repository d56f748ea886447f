"""Captures log records in a test.

Replaces pytest's logging plugin, which visits each of about 600 loggers in every test.
"""

import logging


class Logs(logging.Handler):
    """A handler that keeps its records."""

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
