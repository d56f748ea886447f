"""Decoding of `data:` URIs."""

import base64

import pytest

from serve.errors import InvalidImage
from serve.media.data_uri import decode_data_uri, is_data_uri

ALL_BYTES = bytes(range(256))


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        (f"data:image/png;base64,{base64_of(ALL_BYTES)}", ALL_BYTES),
        (f"DATA:image/png;Base64,{base64_of(ALL_BYTES)}", ALL_BYTES),
        (f"data:;base64,{base64_of(b'ab')}", b"ab"),
        ("data:image/png;name=a.png;base64,YWI=", b"ab"),
        ("data:image/png; base64,YWI=", b"ab"),
        ("data:;base64,YWI", b"ab"),
        ("data:;base64,YQ", b"a"),
        ("data:;base64,Y W\nI\t=\r\n", b"ab"),
        ("data:;base64,%59WI%3D", b"ab"),
        ("data:;base64,+/%2B%2f", base64.b64decode("+/+/")),
        ("data:,ab%63%0A", b"abc\n"),
        ("data:text/plain,a,b;base64,c", b"a,b;base64,c"),
        ("data:," + "".join(f"%{byte:02x}" for byte in ALL_BYTES), ALL_BYTES),
        ("data:,", b""),
        ("data:;base64,", b""),
    ],
)
def test_data_uri_is_decoded(uri: str, content: bytes) -> None:
    assert decode_data_uri(uri, "image", 1000) == content


@pytest.mark.parametrize(
    ("uri", "reason"),
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
        ("http://example.com/", "not a data: URI"),
    ],
)
def test_malformed_data_uri_is_rejected_with_reason(uri: str, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason) as caught:
        decode_data_uri(uri, "mask", 1000)
    assert caught.value.field == "mask"


@pytest.mark.parametrize("content", [b"x" * 3000, b"x" * 3001, b"x" * 30_000])
@pytest.mark.parametrize("encoding", ["base64", "percent-encoded base64", "percent-encoded"])
def test_content_over_max_bytes_is_rejected(content: bytes, encoding: str) -> None:
    uri = {
        "base64": f"data:;base64,{base64_of(content)}",
        "percent-encoded base64": "data:;base64," + "".join(f"%{ord(char):02X}" for char in base64_of(content)),
        "percent-encoded": "data:," + "".join(f"%{byte:02X}" for byte in content),
    }[encoding]
    if len(content) <= 3000:
        assert decode_data_uri(uri, "image", 3000) == content
    else:
        with pytest.raises(InvalidImage, match="3000 bytes"):
            decode_data_uri(uri, "image", 3000)


@pytest.mark.parametrize(
    ("uri", "is_data"), [("data:,x", True), ("DaTa:,x", True), ("http://x/data:", False), ("", False)]
)
def test_data_uri_is_recognized_by_its_scheme(uri: str, is_data: bool) -> None:
    assert is_data_uri(uri) is is_data
