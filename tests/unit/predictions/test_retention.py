"""Removal of old predictions and of what is stored for them."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from serve.database.connection import Database
from serve.database.task_lease import TaskLease
from serve.errors import NotFound, StorageUnavailable
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.predictions import retention
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.input_store import InputStore
from serve.predictions.prediction import Output
from serve.predictions.retention import ORPHAN_AGE, ORPHAN_PERIOD, Retention
from serve.predictions.store import PredictionStore
from serve.settings import Settings
from tests.fakes import FakeClock, prediction

IDS = [f"{number:026}" for number in range(5)]
DATA_MAX_AGE_S, RECORD_MAX_AGE_S = 60, 600
IMAGE = bytes(100)


async def load_key() -> bytes:
    return b"secret"


class RetentionHarness:
    """A process with a store of predictions, of outputs and of inputs in one folder."""

    def __init__(self, database: Database, folder: Path, clock: FakeClock, max_bytes: int = 10_000) -> None:
        self.clock = clock
        self.folder = folder
        self.store = PredictionStore(database, ChangeNotifier(database), {prediction().plan.pool: 100}, clock.now)
        stored = ObjectStore(folder.as_uri())
        limits = {"max_age_s": DATA_MAX_AGE_S, "max_bytes": max_bytes}
        settings = Settings.model_validate({"outputs": limits, "record_max_age_s": RECORD_MAX_AGE_S})
        self.outputs = OutputStore(settings.outputs, stored, LinkSigner(load_key, 60))
        self.inputs = InputStore(stored)
        lease = TaskLease(database, "sweep", 10, clock)
        self.retention = Retention(settings, database, lease, self.outputs, self.inputs, clock.now)

    async def make_predictions(self) -> None:
        """Each has an output and stored inputs. All have ended but the last, a second after the other."""
        for each in IDS:
            record = prediction(each).with_log_lines("a line").model_copy(update={"has_shortened_inputs": True})
            await self.inputs.save(record, {"prompt": "long"})
            await self.store.create(record, attached=False)
            name = await self.outputs.save(each, 1, 0, IMAGE, "png")
            output = Output(index=0, name=name, size_bytes=len(IMAGE))
            await self.store.update(each, lambda record, output=output: record.with_output(output))  # type: ignore[misc]
        for each in IDS[:-1]:
            self.clock.elapsed_s += 1
            await self.store.finish(each, lambda record: record.succeeded(self.clock.now()), release=True)

    def stored_ids(self, kind: str) -> Sequence[str]:
        return sorted(path.name.partition(".")[0] for path in (self.folder / kind).iterdir())

    async def store_orphans(self, ids: Sequence[str], age: timedelta) -> None:
        """Stores inputs without a record."""
        for each in ids:
            record = prediction(each).model_copy(update={"has_shortened_inputs": True})
            await self.inputs.save(record, {"prompt": "long"})
        for path in (self.folder / "inputs").iterdir():
            time_s = (self.clock.now() - age).timestamp()
            os.utime(path, (time_s, time_s))

    async def removed_ids(self) -> Sequence[str]:
        return [each for each in IDS if (await self.store.get(each)).data_removed]


@pytest.fixture
async def harness(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RetentionHarness:
    monkeypatch.setattr(retention, "BATCH", 2)
    harness = RetentionHarness(database, tmp_path, FakeClock())
    await harness.make_predictions()
    return harness


async def test_data_is_removed_first_and_then_the_record(harness: RetentionHarness) -> None:
    clock, store = harness.clock, harness.store
    clock.elapsed_s = DATA_MAX_AGE_S
    await harness.retention.sweep()
    assert await harness.removed_ids() == []
    assert harness.stored_ids("outputs") == harness.stored_ids("inputs") == IDS
    clock.elapsed_s = DATA_MAX_AGE_S + 5
    await harness.retention.sweep()
    for each in IDS[:-1]:
        record = await store.get(each)
        assert (record.data_removed, record.inputs, record.logs, record.plan.prompt) == (True, {}, "", "")
        assert record.status == "succeeded"
    assert (await store.get(IDS[-1])).inputs
    assert harness.stored_ids("outputs") == harness.stored_ids("inputs") == IDS[-1:]
    clock.elapsed_s = RECORD_MAX_AGE_S + 5
    await harness.retention.sweep()
    for each in IDS[:-1]:
        with pytest.raises(NotFound):
            await store.get(each)
    assert not (await store.get(IDS[-1])).ended


async def test_inputs_of_requests_that_became_no_prediction_are_removed(harness: RetentionHarness) -> None:
    await harness.store_orphans(["x", "y", "z"], ORPHAN_AGE - timedelta(seconds=1))
    await harness.retention.sweep()
    assert harness.stored_ids("inputs") == [*IDS, "x", "y", "z"]
    # The next sweep does not list them again.
    harness.clock.elapsed_s += 30
    await harness.retention.sweep()
    assert harness.stored_ids("inputs")[-3:] == ["x", "y", "z"]
    harness.clock.elapsed_s += ORPHAN_PERIOD.total_seconds()
    await harness.retention.sweep()
    assert harness.stored_ids("inputs") == IDS[-1:]


async def test_inputs_of_a_second_request_with_the_id_of_a_prediction_are_removed(harness: RetentionHarness) -> None:
    record = prediction(IDS[-1]).model_copy(update={"has_shortened_inputs": True})
    second = record.model_copy(update={"created_at": record.created_at + timedelta(seconds=1)})
    await harness.inputs.save(second, {"prompt": "second"})
    await harness.store_orphans([], ORPHAN_AGE + timedelta(seconds=1))
    await harness.retention.sweep()
    assert harness.stored_ids("inputs") == IDS
    assert await harness.inputs.load(record) == {"prompt": "long"}


@pytest.mark.parametrize(("max_bytes", "removed"), [(400, 0), (399, 1), (150, 3), (10, 4)])
async def test_oldest_data_is_removed_if_outputs_take_too_much_space(
    database: Database, harness: RetentionHarness, max_bytes: int, removed: int
) -> None:
    await RetentionHarness(database, harness.folder, harness.clock, max_bytes).retention.sweep()
    assert await harness.removed_ids() == IDS[:removed]
    assert harness.stored_ids("outputs") == IDS[removed:]


async def test_only_the_process_with_the_lease_removes_data(database: Database, harness: RetentionHarness) -> None:
    other = RetentionHarness(database, harness.folder, harness.clock)
    harness.clock.elapsed_s = DATA_MAX_AGE_S
    await other.retention.sweep()
    harness.clock.elapsed_s = DATA_MAX_AGE_S + 9
    await harness.retention.sweep()
    assert await harness.removed_ids() == []
    harness.clock.elapsed_s = DATA_MAX_AGE_S + 10
    await harness.retention.sweep()
    assert await harness.removed_ids() == IDS[:-1]


async def test_data_that_cannot_be_deleted_is_removed_later(
    harness: RetentionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(store: ObjectStore, prefix: str) -> None:
        raise StorageUnavailable

    harness.clock.elapsed_s = DATA_MAX_AGE_S + 5
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "delete_folder", fail)
        with pytest.raises(StorageUnavailable):
            await harness.retention.sweep()
    assert await harness.removed_ids() == []
    await harness.retention.sweep()
    assert await harness.removed_ids() == IDS[:-1]
