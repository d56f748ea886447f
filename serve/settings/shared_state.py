"""What ingress replicas on several nodes cannot share with the settings."""

from serve.settings.root import Settings


def unshared_state(settings: Settings, nodes: int) -> tuple[str, ...]:
    """What the operator should know, one sentence for each setting, if ingress replicas run on this many nodes."""
    if nodes < 2:
        return ()
    problems = []
    if not (settings.database_url or "").startswith("postgresql:"):
        problems.append(
            f"database_url: the ingress runs on {nodes} nodes, and SQLite is on one of them: predictions of the others"
            " are not found; set it to a PostgreSQL database"
        )
    if (settings.storage_url or "file:").startswith("file:"):
        problems.append(
            f"storage_url: the ingress runs on {nodes} nodes: set it to a bucket, or make sure that the folder is on a"
            " file system that all of them share"
        )
    return tuple(problems)
