"""Byte ranges and file names of stored files."""

import pytest

from serve.api.stored_content import UnsatisfiableRange, content_disposition, has_tag, parse_range


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 6)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-100", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-100", (0, 10)),
        (" bytes=9-9 ", (9, 10)),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("bytes=a-b", None),
        ("bytes=\u0661-", None),
        ("items=0-1", None),
        (f"bytes=0-{'9' * 19}", None),
    ],
)
def test_range_is_parsed(header: str, span: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize(("header", "size_bytes"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_range_after_the_end_is_unsatisfiable(header: str, size_bytes: int) -> None:
    with pytest.raises(UnsatisfiableRange):
        parse_range(header, size_bytes)


@pytest.mark.parametrize(
    ("header", "expected"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False), ("", False)],
)
def test_entity_tags_are_compared(header: str, expected: bool) -> None:
    assert has_tag(header, '"a"') is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat.png", 'inline; filename="cat.png"'),
        ('a"b', "inline; filename*=utf-8''a%22b"),
        ("\u043a", "inline; filename*=utf-8''%D0%BA"),
    ],
)
def test_file_name_is_quoted(name: str, expected: str) -> None:
    assert content_disposition("inline", name) == expected
