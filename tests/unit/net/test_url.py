"""Parsing of URLs and their display in messages."""

import httpx
import pytest

from serve.net.url import InvalidUrl, display_url, parse_url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://example.com/a.png", "http and https"),
        ("file:///etc/passwd", "http and https"),
        ("gopher://example.com/", "http and https"),
        ("//example.com/a.png", "http and https"),
        ("http://", "no host"),
        ("http:///a.png", "no host"),
        ("http://./a.png", "no host"),
        ("http://me:secret@example.com/", "password"),
        ("http://example.com\\@127.0.0.1/", "password"),
        ("http://example.com:0/", "port"),
        ("http://example.com:65536/", "port"),
        ("http://example.com:-1/", "port"),
        ("http://example.com:eighty/", "valid URL"),
        ("http://[::1/", "valid URL"),
        ("http://0177.0.0.1/", "valid URL"),
        ("http://①②⑦.⓪.⓪.①/", "valid URL"),
        ("http://exam\nple.com/", "valid URL"),
        ("http://example.com/" + "a" * 70_000, "valid URL"),
    ],
)
def test_invalid_url_is_rejected_with_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidUrl, match=reason):
        parse_url(text)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b.png", "https://example.com:8443/b.png"),
        ("b.png?x=1", "https://example.com:8443/a/b.png?x=1"),
        ("//other.com/b.png", "https://other.com/b.png"),
        ("http://other.com./b.png#top", "http://other.com/b.png"),
    ],
)
def test_location_is_resolved_against_base_url(location: str, url: str) -> None:
    assert str(parse_url(location, base=httpx.URL("https://example.com:8443/a/x.png"))) == url


@pytest.mark.parametrize(
    ("text", "displayed"),
    [
        ("https://example.com/a.png?token=secret#part", "https://example.com/a.png"),
        ("https://me:secret@example.com:8443/a.png", "https://example.com:8443/a.png"),
        ("http://exa mple.com:x/?token=secret", "the URL"),
        ("http:///?token=secret", "the URL"),
        ("https://example.com/" + "a" * 500, "https://example.com/" + "a" * 177 + "..."),
    ],
)
def test_displayed_url_has_no_secrets(text: str, displayed: str) -> None:
    assert display_url(text) == displayed
