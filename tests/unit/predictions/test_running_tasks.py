"""The tasks of running predictions: their ends, and closing them."""

import asyncio

from serve.predictions.prediction import Prediction
from serve.predictions.running_tasks import RunningTasks
from tests.fakes import prediction

A, B = prediction("a" * 26), prediction("b" * 26)


class Log:
    """What happened to the tasks."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks = RunningTasks(self._after)

    async def run(self, name: str, *, forever: bool = False) -> None:
        self.lines.append(f"run {name}")
        if forever:
            await asyncio.Event().wait()

    async def before_stop(self, prediction_id: str) -> None:
        self.lines.append(f"before {prediction_id[0]}")

    async def _after(self, ended: Prediction) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        self.lines.append(f"after {ended.id[0]}")


async def test_join_waits_for_the_task_and_for_what_follows_it() -> None:
    log = Log()
    log.tasks.start(A, log.run("a"))
    await log.tasks.join()
    assert log.lines == ["run a", "after a"]


async def test_task_that_is_stopped_before_its_first_step_is_followed_up_too() -> None:
    log = Log()
    log.tasks.start(A, log.run("a", forever=True))
    log.tasks.stop(A.id)
    await log.tasks.join()
    assert log.lines[-1] == "after a"


async def test_stop_does_not_reach_what_follows_a_task() -> None:
    log = Log()
    log.tasks.start(A, log.run("a"))
    while not log.tasks._ending:
        await asyncio.sleep(0)
    log.tasks.stop(A.id)
    await log.tasks.join()
    assert log.lines == ["run a", "after a"]


async def test_close_stops_only_what_has_not_ended() -> None:
    log = Log()
    log.tasks.start(A, log.run("a"))
    log.tasks.start(B, log.run("b", forever=True))
    await log.tasks.close(0.01, log.before_stop)
    assert log.lines == ["run a", "run b", "after a", "before b", "after b"]
