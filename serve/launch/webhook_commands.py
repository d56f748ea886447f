"""The operator's commands for webhooks: `python -m serve webhooks rotate-secret | dead | replay`."""

import argparse
from collections.abc import Sequence
from datetime import timedelta

from serve.access.caller import NO_OWNER
from serve.access.token_rows import read_token
from serve.database.connection import Database
from serve.database.times import from_us, to_us
from serve.launch.config_file import ConfigError
from serve.predictions.prediction import rfc3339, utc_now
from serve.webhooks import delivery_rows as rows
from serve.webhooks.signing_secrets import SigningSecrets

DEFAULT_OVERLAP_HOURS = 24.0
MAX_LISTED = 1000


def parse(arguments: Sequence[str], common: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Parses the arguments after `webhooks`. `common` has further options of all commands."""
    parser = argparse.ArgumentParser(prog="serve webhooks", description="Commands for webhooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    parents = [] if common is None else [common]
    rotate = commands.add_parser("rotate-secret", parents=parents, help="make a new signing secret and print it")
    rotate.add_argument(
        "--overlap-hours",
        type=_hours,
        default=DEFAULT_OVERLAP_HOURS,
        metavar="N",
        help=f"how long the replaced secret signs too; default: {DEFAULT_OVERLAP_HOURS:g}",
    )
    rotate.add_argument(
        "--token", metavar="ID", help="the token whose secret is replaced; default: that of callers without one"
    )
    commands.add_parser("dead", parents=parents, help=f"list the last {MAX_LISTED} webhooks that were not delivered")
    replay = commands.add_parser("replay", parents=parents, help="send webhooks again that were not delivered")
    selected = replay.add_mutually_exclusive_group(required=True)
    selected.add_argument("prediction_ids", nargs="*", default=[], metavar="PREDICTION_ID")
    selected.add_argument("--all", action="store_true", help="all of them")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace, database_url: str) -> list[str]:
    """Runs a command and returns the lines to print. Raises `DatabaseUnavailable` and `ConfigError`."""
    database = Database(database_url)
    try:
        await database.migrate()
        match options.command:
            case "rotate-secret":
                owner = await _owner(database, options.token)
                return [await SigningSecrets(database).rotate(owner, timedelta(hours=options.overlap_hours))]
            case "dead":
                found = await database.read(lambda connection: rows.read_dead(connection, MAX_LISTED))
                return [_line(each) for each in found]
            case _:
                return [f"{await _replay(database, options)} webhooks will be sent again"]
    finally:
        await database.aclose()


async def _owner(database: Database, token_id: str | None) -> str:
    """The owner of the predictions of a token; None means those without one, or with the operator's."""
    if token_id is None:
        return NO_OWNER
    if await database.read(lambda connection: read_token(connection, token_id)) is None:
        raise ConfigError(f"--token {token_id}: there is no token with this id")
    return token_id


async def _replay(database: Database, options: argparse.Namespace) -> int:
    prediction_ids = None if options.all else options.prediction_ids
    now_us = to_us(utc_now())
    return await database.write(lambda connection: rows.replay(connection, prediction_ids, now_us))


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours <= 24 * 365:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {24 * 365}")
    return hours


def _line(delivery: rows.DeadDelivery) -> str:
    dead_at = rfc3339(from_us(delivery.dead_us))
    return "\t".join((delivery.prediction_id, dead_at, delivery.host, f"{delivery.attempts} attempts", delivery.error))
