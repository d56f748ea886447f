"""File types are detected by content."""

from pathlib import Path

import pytest

from serve.lora.file_type import detect_file_type
from serve.lora.safetensors_header import InvalidLoraFile
from tests.unit.lora.archives import tar_of, zip_of

WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"
TAR = tar_of(("lora.safetensors", WEIGHTS))


def test_file_type_is_detected_by_content_not_by_name(tmp_path: Path) -> None:
    files = (("a.tar", WEIGHTS, "safetensors"), ("a.safetensors", TAR, "tar"))
    for name, content, file_type in files:
        (tmp_path / name).write_bytes(content)
        assert detect_file_type(tmp_path / name) == file_type


@pytest.mark.parametrize("name", ["(dp", "}q", "<a>.safetensors"])
def test_tar_is_detected_before_other_types(tmp_path: Path, name: str) -> None:
    path = tmp_path / "download"
    path.write_bytes(tar_of((name, WEIGHTS)))
    assert detect_file_type(path) == "tar"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"<!doctype html>", "web page"),
        (b"\xef\xbb\xbf\r\n<html>", "web page"),
        (b"GGUF", "GGUF"),
        (b"Rar!", "RAR"),
        (b"\x80\x04}", "pickle"),
        (b"", "empty"),
    ],
)
def test_unsupported_type_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "download"
    path.write_bytes(content)
    with pytest.raises(InvalidLoraFile, match=word):
        detect_file_type(path)


def test_zip_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(zip_of(("lora.safetensors", WEIGHTS)))
    assert detect_file_type(path) == "zip"
