"""`python -m serve tokens`."""

import asyncio
from pathlib import Path

import pytest

from serve.access.token import parse_token
from serve.access.token_rows import read_tokens
from serve.database.connection import Database
from serve.launch.tokens_command import manage_tokens

Captured = pytest.CaptureFixture[str]


class Command:
    def __init__(self, state: Path, captured: Captured) -> None:
        self._options = ("--set", f"state_folder={state}")
        self._captured = captured
        self.url = f"sqlite:///{state / 'predictions.db'}"

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """The exit status, stdout and stderr."""
        status = manage_tokens([*arguments, *self._options])
        return status, *self._captured.readouterr()

    def create(self, *arguments: str) -> str:
        """Creates a token and returns its id."""
        status, output, _ = self.run("create", "studio", *arguments)
        parsed = parse_token(output.strip())
        assert status == 0
        assert parsed is not None
        return parsed[0]


@pytest.fixture
def command(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("FLUX_SERVE_TOKEN", raising=False)
    return Command(tmp_path / "state", capsys)


def test_created_token_is_in_the_list(command: Command) -> None:
    token_id = command.create("--scope", "read", "--requests-per-minute", "60")
    status, output, _ = command.run("list")
    (row,) = (line.split() for line in output.splitlines() if line.startswith(token_id))
    assert status == 0
    assert (row[1], row[2], row[3], row[-2], row[-1]) == ("read", "60", "-", "valid", "studio")


def test_token_is_revoked_once(command: Command) -> None:
    token_id = command.create()
    assert command.run("revoke", token_id)[0] == 0
    assert "revoked" in command.run("list")[1]
    status, _, error = command.run("revoke", token_id)
    assert status == 1
    assert token_id in error


async def test_tokens_are_in_the_services_database(command: Command, tmp_path: Path) -> None:
    token_id = await asyncio.to_thread(command.create)
    database = Database(command.url)
    assert [token.id for token in await database.read(read_tokens)] == [token_id]
    await database.aclose()


def test_warning_is_printed_if_the_service_requires_no_token(command: Command) -> None:
    assert "require_token" in command.run("create", "studio")[2]
    assert command.run("create", "studio", "--set", "require_token=true")[2] == ""


def test_config_file_and_database_url_are_read(tmp_path: Path, capsys: Captured) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"applications: [{{name: flux, import_path: 'serve.deployment:build', args: {{database_url: '{url}'}}}}]"
    )
    assert manage_tokens(["create", "studio", "--config", str(config)]) == 0
    assert (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("create",),
        ("create", ""),
        ("create", "x" * 101),
        ("create", "a\nb"),
        ("create", "a", "--scope", "all"),
        ("create", "a", "--requests-per-minute", "0"),
        ("create", "a", "--max-in-flight", "-1"),
        ("revoke",),
    ],
)
def test_wrong_usage_exits_with_status_2(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        manage_tokens(arguments)
    assert exit_info.value.code == 2


@pytest.mark.parametrize(
    ("options", "word"), [(("--set", "nothing=1"), "nothing"), (("--set", "x"), "KEY"), (("--config", "/no"), "/no")]
)
def test_errors_are_printed(options: tuple[str, ...], word: str, capsys: Captured) -> None:
    assert manage_tokens(["list", *options]) == 1
    assert word in capsys.readouterr().err
