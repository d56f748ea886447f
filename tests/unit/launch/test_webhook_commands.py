"""The operator's commands for webhooks."""

from pathlib import Path

import pytest
from sqlalchemy import Connection

from serve.__main__ import main
from serve.access.caller import NO_OWNER
from serve.access.token import new_token
from serve.access.token_rows import insert_token
from serve.database.connection import Database
from serve.database.times import to_us
from serve.launch.config_file import ConfigError
from serve.launch.webhook_commands import parse, run
from serve.webhooks import delivery_rows as rows
from serve.webhooks.signing_secrets import SigningSecrets
from tests.fakes import NOON, FakeClock
from tests.unit.webhooks.helpers import dead, make_store, open_ids, with_webhook

A, B = "a" * 26, "b" * 26


async def run_command(database: Database, *arguments: str) -> list[str]:
    return await run(parse(arguments), database.url.render_as_string(hide_password=False))


@pytest.fixture
async def dead_database(migrated: Database) -> Database:
    """A database with dead deliveries of A and B."""
    store = make_store(migrated, FakeClock())
    for prediction_id in (A, B):
        await store.create(with_webhook(prediction_id, "https://me.example/path"), attached=False)
    now_us = to_us(NOON)

    def kill(connection: Connection) -> None:
        for due in rows.read_due(connection, now_us, (), 10):
            lease = rows.claim(connection, due, "me", now_us, now_us)
            assert lease is not None
            rows.record_failure(connection, lease, 20, "refused", now_us, None)

    await migrated.write(kill)
    return migrated


async def test_rotation_prints_the_new_secret_and_keeps_the_old_one_for_the_overlap(migrated: Database) -> None:
    secrets = SigningSecrets(migrated)
    [first] = await secrets.valid(NO_OWNER)
    [second] = await run_command(migrated, "rotate-secret")
    assert await secrets.valid(NO_OWNER) == (second, first)
    [third] = await run_command(migrated, "rotate-secret", "--overlap-hours", "0")
    assert await secrets.valid(NO_OWNER) == (third,)


async def test_secret_of_a_token_is_rotated(migrated: Database) -> None:
    secrets = SigningSecrets(migrated)
    token, _ = new_token("studio", "run", None, None, NOON)
    await migrated.write(lambda connection: insert_token(connection, token))
    [first], [other] = await secrets.valid(token.id), await secrets.valid(NO_OWNER)
    [second] = await run_command(migrated, "rotate-secret", "--token", token.id)
    assert await secrets.valid(token.id) == (second, first)
    assert await secrets.valid(NO_OWNER) == (other,)


async def test_unknown_token_has_no_secret(migrated: Database) -> None:
    with pytest.raises(ConfigError, match="0000000000000000"):
        await run_command(migrated, "rotate-secret", "--token", "0" * 16)


async def test_dead_webhooks_are_listed(dead_database: Database) -> None:
    lines = await run_command(dead_database, "dead")
    assert {line.split("\t")[0] for line in lines} == {A, B}
    assert all("receiver:80" in line and "20" in line and "refused" in line for line in lines)
    assert not any("path" in line for line in lines)


@pytest.mark.parametrize(("arguments", "replayed"), [([A], [A]), (["--all"], [A, B])])
async def test_dead_webhooks_are_replayed(dead_database: Database, arguments: list[str], replayed: list[str]) -> None:
    [line] = await run_command(dead_database, "replay", *arguments)
    assert line.startswith(str(len(replayed)))
    assert await open_ids(dead_database) == replayed
    assert len(await dead(dead_database)) == 2 - len(replayed)


@pytest.mark.parametrize(
    "arguments", [[], ["replay"], ["replay", "--all", A], ["rotate-secret", "--overlap-hours", "-1"], ["other"]]
)
def test_invalid_arguments_are_rejected(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(arguments)
    assert exit.value.code == 2


def test_command_line_uses_the_settings_of_the_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["webhooks", "rotate-secret", "--set", f"state_folder={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith("whsec_")
    assert (tmp_path / "predictions.db").exists()


def test_database_that_is_away_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["webhooks", "dead", "--set", "database_url=postgresql://127.0.0.1:1/none"]) == 1
    assert "database" in capsys.readouterr().err
