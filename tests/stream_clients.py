"""A process that opens many streams of server-sent events, because one process may not open enough files for both ends.

It prints a line when every stream has had its first event, and another one, with the number of those that ended with
the event `done`, when all have ended. Arguments: the number of streams, and their URLs, which are used in turn.
"""

import asyncio
import itertools
import sys
from urllib.parse import urlsplit

CONCURRENT_STARTS = 100


async def follow(url: str, starting: asyncio.Semaphore, started: asyncio.Barrier) -> bool:
    """Whether the stream has ended with the event `done`."""
    parts = urlsplit(url)
    async with starting:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        await reader.readuntil(b"event: logs")
    await started.wait()
    content = await reader.read()
    writer.close()
    return b"event: done" in content


async def main(count: int, urls: list[str]) -> None:
    starting, started = asyncio.Semaphore(CONCURRENT_STARTS), asyncio.Barrier(count + 1)
    streams = [follow(url, starting, started) for url in itertools.islice(itertools.cycle(urls), count)]
    following = asyncio.gather(*streams)
    await started.wait()
    print("started", flush=True)
    print(sum(await following), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
