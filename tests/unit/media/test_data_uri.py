"""What `data:` URIs hold, and what is wrong with those that hold nothing."""

import base64

import pytest

from serve.errors import InvalidImage
from serve.media.data_uri import decode_data_uri, is_data_uri

EVERY_BYTE = bytes(range(256))


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        (f"data:image/png;base64,{encoded(EVERY_BYTE)}", EVERY_BYTE),
        (f"DATA:image/png;Base64,{encoded(EVERY_BYTE)}", EVERY_BYTE),
        (f"data:;base64,{encoded(b'ab')}", b"ab"),
        ("data:image/png;name=a.png;base64,YWI=", b"ab"),
        ("data:image/png; base64,YWI=", b"ab"),
        ("data:;base64,YWI", b"ab"),
        ("data:;base64,YQ", b"a"),
        ("data:;base64,Y W\nI\t=\r\n", b"ab"),
        ("data:;base64,%59WI%3D", b"ab"),
        ("data:;base64,+/%2B%2f", base64.b64decode("+/+/")),
        ("data:,ab%63%0A", b"abc\n"),
        ("data:text/plain,a,b;base64,c", b"a,b;base64,c"),
        ("data:," + "".join(f"%{byte:02x}" for byte in EVERY_BYTE), EVERY_BYTE),
        ("data:,", b""),
        ("data:;base64,", b""),
    ],
)
def test_the_content_of_a_data_uri_is_read(uri: str, content: bytes) -> None:
    assert decode_data_uri(uri, "image", 1000) == content


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("data:image/png;base64", "comma"),
        ("data:", "comma"),
        ("data:image/png;base64" + " " * 2000 + ",YWI=", "comma"),
        ("data:;base64,Y", "not base64"),
        ("data:;base64,YWI*", "not base64"),
        ("data:;base64,YW=I", "not base64"),
        ("data:;base64,=", "not base64"),
        ("data:;base64,YQ===", "not base64"),
        ("data:;base64,YWI=YWI=", "not base64"),
        ("data:;base64,_-_-", "not base64"),
        ("data:;base64,YWI%", "percent"),
        ("data:;base64,YWI%3", "percent"),
        ("data:,%4x", "percent"),
        ("data:,%²1", "not ASCII"),
        ("data:;base64,YWIé", "not ASCII"),
        ("data:,\ud800", "not ASCII"),
        ("http://example.com/", "no data: URI"),
    ],
)
def test_a_malformed_data_uri_is_refused_with_the_reason(uri: str, why: str) -> None:
    with pytest.raises(InvalidImage, match=why) as caught:
        decode_data_uri(uri, "mask", 1000)
    assert caught.value.field == "mask"


@pytest.mark.parametrize("content", [b"x" * 3000, b"x" * 3001, b"x" * 30_000])
@pytest.mark.parametrize("form", ["base64", "base64 with percent signs", "percent signs"])
def test_no_more_bytes_are_taken_than_allowed(content: bytes, form: str) -> None:
    uri = {
        "base64": f"data:;base64,{encoded(content)}",
        "base64 with percent signs": "data:;base64," + "".join(f"%{ord(char):02X}" for char in encoded(content)),
        "percent signs": "data:," + "".join(f"%{byte:02X}" for byte in content),
    }[form]
    if len(content) <= 3000:
        assert decode_data_uri(uri, "image", 3000) == content
    else:
        with pytest.raises(InvalidImage, match="more than 3000 bytes"):
            decode_data_uri(uri, "image", 3000)


@pytest.mark.parametrize(
    ("uri", "is_data"), [("data:,x", True), ("DaTa:,x", True), ("http://x/data:", False), ("", False)]
)
def test_a_data_uri_is_told_by_its_scheme(uri: str, is_data: bool) -> None:
    assert is_data_uri(uri) is is_data
