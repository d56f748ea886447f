"""One weights file is found in whatever it was packed in, and hostile archives come to nothing."""

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

from serve.lora.archive import ExtractedFiles, detect_file_type, extract_weights
from serve.lora.safetensors_header import InvalidLoraFile

WEIGHTS = safetensors.torch.save({"a": torch.arange(6.0)})
Member = tuple[str, bytes]


def tar_of(*members: Member | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return packed.getvalue()


def zip_of(*members: Member | tuple[zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return packed.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def opened(
    tmp_path: Path, content: bytes, max_weights_bytes: int = 10_000, max_unpacked_bytes: int = 100_000
) -> ExtractedFiles:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (tmp_path / "download").write_bytes(content)
    return extract_weights(tmp_path / "download", folder, max_weights_bytes, max_unpacked_bytes)


TRAINED = (
    ("output/flux_train_replicate/config.yaml", b"trigger: TOK"),
    ("output/flux_train_replicate/lora.safetensors", WEIGHTS),
    ("output/flux_train_replicate/captions/a.txt", b"a TOK"),
)
PACKED: dict[str, bytes] = {
    "as it is": WEIGHTS,
    "a trainer's tar": tar_of(*TRAINED),
    "a tar of GNU": tar_of(*TRAINED, form=tarfile.GNU_FORMAT),
    "a tar of old": tar_of(*TRAINED, form=tarfile.USTAR_FORMAT),
    "a tar with long names": tar_of(("x" * 300 + "/" + "y" * 200 + ".safetensors", WEIGHTS)),
    "tar.gz": gzip.compress(tar_of(*TRAINED)),
    "safetensors.gz": gzip.compress(WEIGHTS),
    "zip": zip_of(*TRAINED),
    "zip, stored": zip_of(*TRAINED, compression=zipfile.ZIP_STORED),
    "ending in capitals": zip_of(("LORA.SAFETENSORS", WEIGHTS)),
    "folders": tar_of(special("out/", tarfile.DIRTYPE), ("out/lora.safetensors", WEIGHTS)),
    "folders in a zip": zip_of(("out/", b""), ("out/lora.safetensors", WEIGHTS)),
    "packed on a Mac": tar_of(("._lora.safetensors", b"\0\5\x16\7"), ("lora.safetensors", WEIGHTS)),
    "zipped on a Mac": zip_of(("lora.safetensors", WEIGHTS), ("__MACOSX/._lora.safetensors", b"\0\5\x16\7")),
    "packed with a path that begins here": tar_of(("./lora.safetensors", WEIGHTS)),
}


@pytest.mark.parametrize("content", PACKED.values(), ids=PACKED)
def test_the_weights_are_found(tmp_path: Path, content: bytes) -> None:
    assert opened(tmp_path, content).weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_pefts_configuration_is_found_beside_the_weights(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    content = pack(
        ("other/adapter_config.json", b"wrong"),
        ("out/adapter_model.safetensors", WEIGHTS),
        ("out/adapter_config.json", b"{}"),
    )
    assert opened(tmp_path, content).config == b"{}"


def test_a_file_as_it_is_needs_no_room(tmp_path: Path) -> None:
    assert opened(tmp_path, WEIGHTS).weights == tmp_path / "download"
    assert list((tmp_path / "unpacked").iterdir()) == []


FAULTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the file is empty"),
    "a web page": (b"\n  <!DOCTYPE html><html></html>", "a web page; give a .safetensors file, or a tar"),
    "an error in JSON": (b'{"error": "not found"}', "a text in JSON"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "a pickle": (pickle.dumps({"a": 1}), "a pickle, which could run code"),
    "a pickle of torch": (zip_of(("archive/data.pkl", b"\x80"), ("archive/data/0", b"0")), "it is a pickle"),
    "a pickle in a tar": (tar_of(("lora.pt", b"\x80")), r"no .safetensors file, but lora.pt"),
    "something": (b"something else entirely", "of another kind"),
    "an empty tar": (tar_of(), "the archive is empty: it should hold one .safetensors file"),
    "an empty zip": (zip_of(), "the archive is empty: it should hold one .safetensors file"),
    "two in a tar": (
        tar_of(("a/one.safetensors", WEIGHTS), ("two.safetensors", WEIGHTS)),
        "two weights files, a/one.safetensors and two.safetensors; give the link of one",
    ),
    "two in a zip": (
        zip_of(("one.safetensors", WEIGHTS), ("b/two.safetensors", WEIGHTS)),
        "two weights files, one.safetensors and b/two.safetensors",
    ),
    "others": (
        tar_of(*((f"{number}.txt", b"") for number in range(7))),
        "but 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and more",
    ),
    "an archive in an archive": (gzip.compress(gzip.compress(WEIGHTS)), "an archive in an archive"),
    "a link": (tar_of(special("lora.safetensors", tarfile.SYMTYPE, "/etc/passwd")), "a link or a device"),
    "a hard link": (
        tar_of(("lora.safetensors", WEIGHTS), special("more", tarfile.LNKTYPE, "lora.safetensors")),
        "more, which is a link or a device",
    ),
    "a device": (tar_of(special("zero.safetensors", tarfile.CHRTYPE)), "a link or a device"),
    "a pipe": (tar_of(special("pipe.safetensors", tarfile.FIFOTYPE)), "a link or a device"),
    "a link in a zip": (zip_of((zipped_link("lora.safetensors"), b"/etc/passwd")), "a link or a device"),
    "a path upwards": (tar_of(("out/../../lora.safetensors", WEIGHTS)), "a path that leads out of it"),
    "a path from the root": (tar_of(("/root/lora.safetensors", WEIGHTS)), "a path that leads out of it"),
    "a path upwards in a zip": (zip_of(("../lora.safetensors", WEIGHTS)), "a path that leads out of it"),
    "a path of Windows": (zip_of(("..\\lora.safetensors", WEIGHTS)), "a path that leads out of it"),
    "cut off": (tar_of(*TRAINED)[:1700], "damaged or cut off"),
    "gzip cut off": (gzip.compress(os.urandom(2000))[:-20], "damaged or cut off"),
    "gzip damaged": (gzip.compress(b"x" * 100)[:-8] + bytes(8), "damaged or cut off"),
    "zip cut off": (zip_of(*TRAINED)[:-30], "damaged or cut off"),
    "zip damaged": (zip_of(*TRAINED).replace(b"PK\x01\x02", b"PK\x09\x09"), "damaged or cut off"),
    "zip of lzma": (zip_of(*TRAINED, compression=zipfile.ZIP_LZMA), "compressed in an unusual way"),
    "weights over the limit": (tar_of(("a.safetensors", bytes(10_001))), "unpacks to more than 10000 bytes"),
    "a bomb of zip": (zip_of(("a.safetensors", bytes(50_000_000))), "unpacks to more than 10000 bytes"),
    "a bomb of gzip": (gzip.compress(bytes(50_000_000)), "unpacks to more than 100000 bytes"),
    "a bomb beside the weights": (
        gzip.compress(tar_of(*TRAINED, ("zeros", bytes(1_000_000)))),
        "unpacks to more than 100000 bytes",
    ),
    "many files": (zip_of(*((str(number), b"") for number in range(10_001))), "more than 10000 files"),
}


@pytest.mark.parametrize(("content", "why"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_archive_of_one_weights_file_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidLoraFile, match=why):
        opened(tmp_path, content)
    assert time.monotonic() - began < 5


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of(("lora.safetensors", WEIGHTS)))
    content[6] |= 1
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InvalidLoraFile, match="encrypted"):
        opened(tmp_path, bytes(content))


@pytest.mark.parametrize("field", ["a long name", "a header of pax"])
def test_a_tar_whose_headers_would_fill_the_memory_is_refused(tmp_path: Path, field: str) -> None:
    kind = tarfile.GNUTYPE_LONGNAME if field == "a long name" else tarfile.XHDTYPE
    info = special("././@LongLink", kind)
    info.size = 2**33
    content = info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    with pytest.raises(InvalidLoraFile, match="a header of unreasonable size"):
        opened(tmp_path, content)


def test_a_tar_whose_headers_go_on_and_on_is_refused(tmp_path: Path) -> None:
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 512
    with pytest.raises(InvalidLoraFile, match="damaged or cut off"):
        opened(tmp_path, (info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512) * 5000)


def test_a_sparse_file_that_claims_to_be_large_is_cut_off(tmp_path: Path) -> None:
    info = tarfile.TarInfo("lora.safetensors")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "1"}
    info.size = 1
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(InvalidLoraFile, match="unpacks to more than 10000 bytes"):
        opened(tmp_path, packed.getvalue())


@pytest.mark.parametrize("locator", [False, True], ids=["in its own words", "in the words of zip64"])
def test_a_zip_whose_list_would_fill_the_memory_is_refused(tmp_path: Path, locator: bool) -> None:
    content = bytearray(zip_of(("lora.safetensors", WEIGHTS)))
    end = content.rfind(b"PK\x05\x06")
    if locator:
        content[end:end] = b"PK\x06\x07" + bytes(16)
    else:
        struct.pack_into("<L", content, end + 12, 2**31)
    with pytest.raises(InvalidLoraFile, match="holds too many files"):
        opened(tmp_path, bytes(content))


def test_a_disk_that_is_full_is_no_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "download").write_bytes(tar_of(*TRAINED))
    with pytest.raises(OSError, match="No such file"):
        extract_weights(tmp_path / "download", tmp_path / "missing", 10_000, 10_000)


def test_a_kind_is_told_by_the_bytes_and_not_by_a_name(tmp_path: Path) -> None:
    for name, content, kind in (("a.tar", WEIGHTS, "safetensors"), ("a.safetensors", tar_of(*TRAINED), "tar")):
        (tmp_path / name).write_bytes(content)
        assert detect_file_type(tmp_path / name) == kind
