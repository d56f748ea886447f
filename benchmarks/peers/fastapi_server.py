"""A plain FastAPI application with one pipeline and one lock."""

import asyncio
import os
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.workload import ImageRequest


def make_app(pipeline: Pipeline) -> FastAPI:
    app = FastAPI()
    lock = asyncio.Lock()

    @app.post("/generate")
    async def generate(body: dict[str, Any]) -> dict[str, list[str]]:
        async with lock:
            (output,) = await asyncio.to_thread(pipeline.generate, [ImageRequest(**body)])
        return {"output": output}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(Pipeline()), host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
