"""The number of files, and so of sockets, that the process of the tests may open."""

import resource

import pytest

OWN_FILES = 500


def allow_sockets(count: int) -> None:
    """Lets this process open `count` sockets. Skips the test if the system does not allow so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count + OWN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < count + OWN_FILES:
        pytest.skip(f"{count} sockets need {count + OWN_FILES} open files; the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + OWN_FILES, hard))
