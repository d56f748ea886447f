"""`python -m serve tokens`: makes, lists and revokes the tokens of callers, also while the service runs."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.access.caller import SCOPES
from serve.access.token import Token, new_token
from serve.access.token_rows import insert_token, read_tokens, revoke_token
from serve.database.connection import Database
from serve.errors import DatabaseUnavailable
from serve.launch.config_file import (
    ConfigError,
    apply_settings,
    embedded_config,
    parse_assignments,
    read_config,
    validate_config,
)
from serve.settings import database_url, read_secrets

TOKENS = "tokens"
MAX_NAME_CHARS = 100
_COLUMNS = "{:18}{:8}{:>10}{:>11}  {:18}{:9}{}"


def manage_tokens(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status. Errors are printed to stderr."""
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_run(options))
    except ConfigError as error:
        return _fail(str(error))
    except DatabaseUnavailable as error:
        return _fail(f"the database cannot be reached: {error.cause}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve tokens", description="Manage the tokens of callers.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a token and print it; it cannot be shown again")
    create.add_argument("name", type=_name, help="a name for the list of tokens")
    create.add_argument("--scope", choices=SCOPES, default="run", help="default: run, which includes read")
    create.add_argument("--requests-per-minute", type=_positive, metavar="N", help="default: no limit")
    create.add_argument(
        "--max-in-flight", type=_positive, metavar="N", help="unfinished predictions; default: no limit"
    )
    show = commands.add_parser("list", help="list all tokens")
    revoke = commands.add_parser("revoke", help="revoke a token; the service accepts it for a few more seconds")
    revoke.add_argument("id", help="the id in the list, which is also the second part of the token")
    for command in (create, show, revoke):
        command.add_argument("--config", type=Path, help="the service's config file; default: the embedded models")
        command.add_argument("--port", type=int, help="the service's port; default without a config file: 8000")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for the service")
    return parser


async def _run(options: argparse.Namespace) -> int:
    database = Database(_url(options))
    try:
        await database.migrate()
        match options.command:
            case "create":
                return await _create(database, options)
            case "list":
                return await _list(database)
            case _:
                return await _revoke(database, options.id)
    finally:
        await database.aclose()


async def _create(database: Database, options: argparse.Namespace) -> int:
    token, text = new_token(
        options.name, options.scope, options.requests_per_minute, options.max_in_flight, datetime.now(UTC)
    )
    await database.write(lambda connection: insert_token(connection, token))
    print(text)
    return 0


async def _list(database: Database) -> int:
    print(_COLUMNS.format("ID", "SCOPE", "REQ/MIN", "IN FLIGHT", "CREATED", "STATE", "NAME"))
    for token in await database.read(read_tokens):
        print(_COLUMNS.format(*_cells(token)))
    return 0


async def _revoke(database: Database, token_id: str) -> int:
    now = datetime.now(UTC)
    if not await database.write(lambda connection: revoke_token(connection, token_id, now)):
        return _fail(f"there is no valid token with the id {token_id!r}")
    return 0


def _cells(token: Token) -> tuple[Any, ...]:
    limits = (token.requests_per_minute or "-", token.max_in_flight or "-")
    state = "valid" if token.revoked_at is None else "revoked"
    return token.id, token.scope, *limits, f"{token.created_at:%Y-%m-%d %H:%M}", state, token.name


def _url(options: argparse.Namespace) -> str:
    """The URL of the service's database. Warns if the service requires no token."""
    config = read_config(options.config) if options.config else embedded_config()
    schema, settings = validate_config(apply_settings(config, parse_assignments(options.set)))
    if options.command == "create" and not settings.require_token and read_secrets().api_token is None:
        _warn("the service requires tokens only with the setting require_token=true, or with FLUX_SERVE_TOKEN")
    return database_url(settings, options.port or schema.http_options.port)


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= MAX_NAME_CHARS:
        raise argparse.ArgumentTypeError(f"should have 1 to {MAX_NAME_CHARS} printable characters")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError("should be a positive whole number")
    return int(text)


def _warn(message: str) -> None:
    print(f"serve: {message}", file=sys.stderr)


def _fail(message: str) -> int:
    _warn(message)
    return 1
