"""Weights are extracted from every supported file type. Damaged and malicious archives are rejected."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from serve.lora.archive import ExtractedFiles, extract_weights
from serve.lora.file_type import detect_file_type
from serve.lora.safetensors_header import InvalidLoraFile
from tests.unit.lora.archives import tar_of, zip_of

WEIGHTS = safetensors.torch.save({"a": torch.arange(6.0)})


def special_member(name: str, member_type: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = member_type, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def extract(
    tmp_path: Path, content: bytes, max_weights_bytes: int = 10_000, max_unpacked_bytes: int = 100_000
) -> ExtractedFiles:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (tmp_path / "download").write_bytes(content)
    return extract_weights(tmp_path / "download", folder, max_weights_bytes, max_unpacked_bytes)


TRAINER_OUTPUT = (
    ("output/flux_train_replicate/config.yaml", b"trigger: TOK"),
    ("output/flux_train_replicate/lora.safetensors", WEIGHTS),
    ("output/flux_train_replicate/captions/a.txt", b"a TOK"),
)
FILES: dict[str, bytes] = {
    "safetensors": WEIGHTS,
    "pax tar": tar_of(*TRAINER_OUTPUT),
    "GNU tar": tar_of(*TRAINER_OUTPUT, tar_format=tarfile.GNU_FORMAT),
    "ustar": tar_of(*TRAINER_OUTPUT, tar_format=tarfile.USTAR_FORMAT),
    "tar with long names": tar_of(("x" * 300 + "/" + "y" * 200 + ".safetensors", WEIGHTS)),
    "tar.gz": gzip.compress(tar_of(*TRAINER_OUTPUT)),
    "safetensors.gz": gzip.compress(WEIGHTS),
    "zip": zip_of(*TRAINER_OUTPUT),
    "uncompressed zip": zip_of(*TRAINER_OUTPUT, compression=zipfile.ZIP_STORED),
    "upper-case suffix": zip_of(("LORA.SAFETENSORS", WEIGHTS)),
    "folders in a tar": tar_of(special_member("out/", tarfile.DIRTYPE), ("out/lora.safetensors", WEIGHTS)),
    "folders in a zip": zip_of(("out/", b""), ("out/lora.safetensors", WEIGHTS)),
    "macOS tar": tar_of(("._lora.safetensors", b"\0\5\x16\7"), ("lora.safetensors", WEIGHTS)),
    "macOS zip": zip_of(("lora.safetensors", WEIGHTS), ("__MACOSX/._lora.safetensors", b"\0\5\x16\7")),
    "path that starts with a dot": tar_of(("./lora.safetensors", WEIGHTS)),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_weights_are_extracted(tmp_path: Path, content: bytes) -> None:
    assert extract(tmp_path, content).weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_adapter_config_next_to_the_weights_is_extracted(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    content = pack(
        ("other/adapter_config.json", b"wrong"),
        ("out/adapter_model.safetensors", WEIGHTS),
        ("out/adapter_config.json", b"{}"),
    )
    assert extract(tmp_path, content).config == b"{}"


def test_safetensors_file_is_not_copied(tmp_path: Path) -> None:
    assert extract(tmp_path, WEIGHTS).weights == tmp_path / "download"
    assert list((tmp_path / "unpacked").iterdir()) == []


INVALID_FILES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "empty"),
    "web page": (b"\n  <!DOCTYPE html><html></html>", "web page.*safetensors"),
    "JSON error": (b'{"error": "not found"}', "JSON"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "pickle": (pickle.dumps({"a": 1}), "pickle"),
    "torch checkpoint": (zip_of(("archive/data.pkl", b"\x80"), ("archive/data/0", b"0")), "pickle"),
    "torch checkpoint in a tar": (tar_of(("lora.pt", b"\x80")), r"no \.safetensors file.*lora\.pt"),
    "unknown data": (b"something else entirely", "unknown"),
    "empty tar": (tar_of(), "archive is empty"),
    "empty zip": (zip_of(), "archive is empty"),
    "two weights files in a tar": (
        tar_of(("a/one.safetensors", WEIGHTS), ("two.safetensors", WEIGHTS)),
        "several.* a/one.safetensors.* two.safetensors",
    ),
    "two weights files in a zip": (
        zip_of(("one.safetensors", WEIGHTS), ("b/two.safetensors", WEIGHTS)),
        "several.* one.safetensors.* b/two.safetensors",
    ),
    "other files only": (
        tar_of(*((f"{number}.txt", b"") for number in range(7))),
        "0.txt, 1.txt, 2.txt, 3.txt, 4.txt",
    ),
    "nested archive": (gzip.compress(gzip.compress(WEIGHTS)), "nested"),
    "symbolic link": (tar_of(special_member("lora.safetensors", tarfile.SYMTYPE, "/etc/passwd")), "link or device"),
    "hard link": (
        tar_of(("lora.safetensors", WEIGHTS), special_member("more", tarfile.LNKTYPE, "lora.safetensors")),
        "link or device, more",
    ),
    "device": (tar_of(special_member("zero.safetensors", tarfile.CHRTYPE)), "link or device"),
    "named pipe": (tar_of(special_member("pipe.safetensors", tarfile.FIFOTYPE)), "link or device"),
    "symbolic link in a zip": (zip_of((zip_link("lora.safetensors"), b"/etc/passwd")), "link or device"),
    "parent path": (tar_of(("out/../../lora.safetensors", WEIGHTS)), "outside"),
    "absolute path": (tar_of(("/root/lora.safetensors", WEIGHTS)), "outside"),
    "parent path in a zip": (zip_of(("../lora.safetensors", WEIGHTS)), "outside"),
    "Windows parent path": (zip_of(("..\\lora.safetensors", WEIGHTS)), "outside"),
    "truncated tar": (tar_of(*TRAINER_OUTPUT)[:1700], "truncated"),
    "truncated gzip": (gzip.compress(os.urandom(2000))[:-20], "truncated"),
    "damaged gzip": (gzip.compress(b"x" * 100)[:-8] + bytes(8), "damaged"),
    "truncated zip": (zip_of(*TRAINER_OUTPUT)[:-30], "truncated"),
    "damaged zip": (zip_of(*TRAINER_OUTPUT).replace(b"PK\x01\x02", b"PK\x09\x09"), "damaged"),
    "LZMA zip": (zip_of(*TRAINER_OUTPUT, compression=zipfile.ZIP_LZMA), "compression"),
    "oversized weights": (tar_of(("a.safetensors", bytes(10_001))), "10000 bytes"),
    "zip bomb": (zip_of(("a.safetensors", bytes(50_000_000))), "10000 bytes"),
    "gzip bomb": (gzip.compress(bytes(50_000_000)), "100000 bytes"),
    "bomb next to the weights": (gzip.compress(tar_of(*TRAINER_OUTPUT, ("zeros", bytes(1_000_000)))), "100000 bytes"),
    "too many files": (zip_of(*((str(number), b"") for number in range(10_001))), "10000 files"),
}


@pytest.mark.parametrize(("content", "word"), INVALID_FILES.values(), ids=INVALID_FILES)
def test_invalid_file_is_rejected_quickly(tmp_path: Path, content: bytes, word: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(InvalidLoraFile, match=word):
        extract(tmp_path, content)
    assert time.monotonic() - start_s < 5


def test_encrypted_zip_is_rejected(tmp_path: Path) -> None:
    content = bytearray(zip_of(("lora.safetensors", WEIGHTS)))
    content[6] |= 1
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InvalidLoraFile, match="encrypted"):
        extract(tmp_path, bytes(content))


@pytest.mark.parametrize("member_type", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE], ids=["long name", "pax header"])
def test_tar_with_an_oversized_header_is_rejected(tmp_path: Path, member_type: bytes) -> None:
    info = special_member("././@LongLink", member_type)
    info.size = 2**33
    content = info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    with pytest.raises(InvalidLoraFile, match="oversized header"):
        extract(tmp_path, content)


def test_tar_with_endless_headers_is_rejected(tmp_path: Path) -> None:
    info = special_member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 512
    with pytest.raises(InvalidLoraFile, match="damaged"):
        extract(tmp_path, (info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512) * 5000)


def test_sparse_file_with_a_large_apparent_size_is_rejected(tmp_path: Path) -> None:
    info = tarfile.TarInfo("lora.safetensors")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "1"}
    info.size = 1
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(InvalidLoraFile, match="10000 bytes"):
        extract(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("is_zip64", [False, True])
def test_zip_with_an_oversized_central_directory_is_rejected(tmp_path: Path, is_zip64: bool) -> None:
    content = bytearray(zip_of(("lora.safetensors", WEIGHTS)))
    end = content.rfind(b"PK\x05\x06")
    if is_zip64:
        content[end:end] = b"PK\x06\x07" + bytes(16)
    else:
        struct.pack_into("<L", content, end + 12, 2**31)
    with pytest.raises(InvalidLoraFile, match="too many files"):
        extract(tmp_path, bytes(content))


def test_write_error_is_raised_as_os_error(tmp_path: Path) -> None:
    (tmp_path / "download").write_bytes(tar_of(*TRAINER_OUTPUT))
    with pytest.raises(OSError, match="No such file"):
        extract_weights(tmp_path / "download", tmp_path / "missing", 10_000, 10_000)


def test_file_type_is_detected_by_content_not_by_name(tmp_path: Path) -> None:
    files = (("a.tar", WEIGHTS, "safetensors"), ("a.safetensors", tar_of(*TRAINER_OUTPUT), "tar"))
    for name, content, file_type in files:
        (tmp_path / name).write_bytes(content)
        assert detect_file_type(tmp_path / name) == file_type
