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

from serve.lora.archive import MAX_ZIP_DIRECTORY_BYTES, ExtractedFiles, extract_weights
from serve.lora.safetensors_header import InvalidLoraFile
from tests.unit.lora.archives import tar_of, zip64_of, zip64_with_small_fields, zip_of

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
    tmp_path: Path,
    content: bytes,
    max_weights_bytes: int = 10_000,
    max_unpacked_bytes: int = 100_000,
    member: str | None = None,
) -> ExtractedFiles:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (tmp_path / "download").write_bytes(content)
    return extract_weights(tmp_path / "download", folder, max_weights_bytes, max_unpacked_bytes, member)


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
    "ZIP64": zip64_of(*TRAINER_OUTPUT),
    "ZIP64 with small fields": zip64_with_small_fields(*TRAINER_OUTPUT),
    "ZIP64 after other data": b"PK\3\4" + zip64_of(*TRAINER_OUTPUT),
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


@pytest.mark.parametrize("pack", [zip_of, zip64_of, zip64_with_small_fields])
def test_zip_with_an_oversized_central_directory_is_rejected(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    name_bytes = 2**16 - 100
    members = [(f"{number:x<{name_bytes}}", b"") for number in range(MAX_ZIP_DIRECTORY_BYTES // name_bytes + 1)]
    with pytest.raises(InvalidLoraFile, match="too many files"):
        extract(tmp_path, pack(("lora.safetensors", WEIGHTS), *members))


DIRECTORY_SIZE, DIRECTORY_OFFSET = 40, 48
"""Offsets in the ZIP64 record at the end of a zip file."""


@pytest.mark.parametrize("field", [DIRECTORY_SIZE, DIRECTORY_OFFSET])
@pytest.mark.parametrize("value", [0, 2**31, 2**62, 2**64 - 1])
def test_zip64_with_false_sizes_is_rejected(tmp_path: Path, field: int, value: int) -> None:
    content = bytearray(zip64_of(("lora.safetensors", WEIGHTS)))
    struct.pack_into("<Q", content, content.rfind(b"PK\6\6") + field, value)
    with pytest.raises(InvalidLoraFile, match=r"damaged|empty"):
        extract(tmp_path, bytes(content))


@pytest.mark.parametrize("value", [2**31, 2**62, 2**63, 2**64 - 1])
def test_zip64_member_with_a_false_offset_is_rejected(tmp_path: Path, value: int) -> None:
    content = bytearray(zip64_of(("lora.safetensors", WEIGHTS)))
    extra_fields = content.rfind(b"PK\1\2") + 46 + len("lora.safetensors")
    struct.pack_into("<Q", content, extra_fields + 4 + 16, value)
    with pytest.raises(InvalidLoraFile, match="damaged"):
        extract(tmp_path, bytes(content))


def test_zip_with_a_name_that_is_not_utf_8_is_rejected(tmp_path: Path) -> None:
    content = zip_of(("é.safetensors", WEIGHTS)).replace("é".encode(), b"\xff\xff")
    with pytest.raises(InvalidLoraFile, match="damaged"):
        extract(tmp_path, content)


def torch_checkpoint(is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


PICKLES = {
    "zip": torch_checkpoint(is_zip=True),
    "before zip": torch_checkpoint(is_zip=False),
    **{f"protocol {protocol}": pickle.dumps({"a": 1}, protocol) for protocol in range(6)},
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda content: tar_of(("lora.safetensors", content))])
def test_pickle_with_a_wrong_suffix_is_named(tmp_path: Path, content: bytes, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidLoraFile, match=r"pickle \(torch\.save\).*convert"):
        extract(tmp_path, pack(content))


@pytest.mark.parametrize("name", ["lora.pt", "lora.CKPT", "pytorch_lora_weights.bin"])
def test_archive_with_a_pickle_only_advises_to_convert_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidLoraFile, match="convert"):
        extract(tmp_path, tar_of((name, b"\x80")))


OTHER_WEIGHTS = safetensors.torch.save({"b": torch.arange(4.0)})
TWO_CHECKPOINTS = (
    ("run/adapter_config.json", b"one"),
    ("run/step 100.safetensors", WEIGHTS),
    ("./run/sub/step_200.safetensors", OTHER_WEIGHTS),
    ("run/sub/adapter_config.json", b"two"),
)


@pytest.mark.parametrize(
    ("member", "weights", "config"),
    [
        ("run/step 100.safetensors", WEIGHTS, b"one"),
        ("run/sub/step_200.safetensors", OTHER_WEIGHTS, b"two"),
    ],
    ids=["first", "second"],
)
@pytest.mark.parametrize("pack", [tar_of, zip_of, zip64_of, lambda *members: gzip.compress(tar_of(*members))])
def test_member_selects_one_of_several_weights_files(
    tmp_path: Path, pack: Callable[..., bytes], member: str, weights: bytes, config: bytes
) -> None:
    extracted = extract(tmp_path, pack(*TWO_CHECKPOINTS), member=member)
    assert (extracted.weights.read_bytes(), extracted.config) == (weights, config)
    assert extracted.weights.parent == tmp_path / "unpacked"


def test_members_that_are_not_selected_are_not_extracted(tmp_path: Path) -> None:
    content = zip_of(("bomb.safetensors", bytes(1_000_000)), ("lora.safetensors", WEIGHTS))
    assert extract(tmp_path, content, member="lora.safetensors").weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("member", ["missing.safetensors", "step_200.safetensors", "../x.safetensors", "RUN/../etc"])
def test_unknown_member_is_rejected_with_the_names_of_the_archive(tmp_path: Path, member: str) -> None:
    with pytest.raises(InvalidLoraFile) as caught:
        extract(tmp_path, tar_of(*TWO_CHECKPOINTS), member=member)
    for name in (member, "run/step 100.safetensors", "run/sub/step_200.safetensors"):
        assert name in str(caught.value)


def test_several_weights_files_are_listed_with_the_form_that_selects_one(tmp_path: Path) -> None:
    names = ["x" * 200 + ".safetensors", *(f"{number}.safetensors" for number in range(30))]
    with pytest.raises(InvalidLoraFile, match=r"#.*and 23 more|and 23 more.*#") as caught:
        extract(tmp_path, tar_of(*((name, WEIGHTS) for name in names)))
    assert len(str(caught.value)) < 600


def test_member_of_a_file_that_is_no_archive_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidLoraFile, match=r"not an archive.*a\.safetensors"):
        extract(tmp_path, WEIGHTS, member="a.safetensors")


def test_write_error_is_raised_as_os_error(tmp_path: Path) -> None:
    (tmp_path / "download").write_bytes(tar_of(*TRAINER_OUTPUT))
    with pytest.raises(OSError, match="No such file"):
        extract_weights(tmp_path / "download", tmp_path / "missing", 10_000, 10_000)
