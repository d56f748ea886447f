"""The operator's commands for webhooks: `python -m serve webhooks rotate-secret | dead | replay`."""

import argparse
from collections.abc import Sequence
from datetime import timedelta

from serve.database.connection import Database
from serve.predictions.prediction import rfc3339, utc_now
from serve.predictions.prediction_rows import EPOCH, to_us
from serve.webhooks import delivery_rows as rows
from serve.webhooks.signing_secrets import SigningSecrets

DEFAULT_OVERLAP_HOURS = 24.0
MAX_LISTED = 1000


def parse(arguments: Sequence[str], common: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the arguments after `webhooks`. `common` has the options of all commands."""
    parser = argparse.ArgumentParser(prog="serve webhooks", description="Commands for webhooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    rotate = commands.add_parser(
        "rotate-secret", parents=[common], help="make a new signing secret and print it"
    )
    rotate.add_argument(
        "--overlap-hours",
        type=float,
        default=DEFAULT_OVERLAP_HOURS,
        metavar="N",
        help=f"how long the replaced secret signs too; default: {DEFAULT_OVERLAP_HOURS:g}",
    )
    commands.add_parser("dead", parents=[common], help=f"list up to {MAX_LISTED} webhooks that could not be delivered, newest first")
    replay = commands.add_parser("replay", parents=[common], help="send webhooks again that could not be delivered")
    selected = replay.add_mutually_exclusive_group(required=True)
    selected.add_argument("prediction_ids", nargs="*", default=[], metavar="PREDICTION_ID")
    selected.add_argument("--all", action="store_true", help="all of them")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace, database_url: str) -> list[str]:
    """Runs a command and returns the lines to print. Raises `DatabaseUnavailable`."""
    database = Database(database_url)
    try:
        await database.migrate()
        match options.command:
            case "rotate-secret":
                return [await SigningSecrets(database).rotate(timedelta(hours=options.overlap_hours))]
            case "dead":
                found = await database.read(lambda connection: rows.read_dead(connection, MAX_LISTED))
                return [_line(each) for each in found]
            case _:
                ids, now_us = None if options.all else options.prediction_ids, to_us(utc_now())
                count = await database.write(lambda connection: rows.replay(connection, ids, now_us))
                return [f"{count} webhooks are sent again"]
    finally:
        await database.aclose()


def _line(delivery: rows.DeadDelivery) -> str:
    dead_at = EPOCH + timedelta(microseconds=delivery.dead_us)
    return "\t".join(
        (delivery.prediction_id, rfc3339(dead_at), delivery.host, f"{delivery.attempts} attempts", delivery.error)
    )
