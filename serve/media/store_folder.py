"""The local folder of a store of outputs or uploaded files."""

import asyncio
import tempfile
from pathlib import Path


class StoreFolder:
    """The folder that the operator chose, or a temporary one."""

    def __init__(self, chosen: Path | None, temporary_prefix: str) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if chosen is None:
            self._temporary = tempfile.TemporaryDirectory(prefix=temporary_prefix)
            self.path = Path(self._temporary.name)
        else:
            self.path = chosen
            self.path.mkdir(parents=True, exist_ok=True)

    async def aclose(self) -> None:
        """Removes the folder if it is a temporary one."""
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)
