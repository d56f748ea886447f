"""Every accepted form of a LoRA reference is parsed, and all other text is rejected."""

import base64
import pickle
import re
from pathlib import Path

import pytest

from serve.lora.file_type import ACCEPTED_SUFFIXES
from serve.lora.parse_reference import FORMS as LISTED_FORMS
from serve.lora.parse_reference import check_aliases, parse_reference
from serve.lora.reference import (
    ArchiveMember,
    CivitaiFile,
    EmbeddedLora,
    HubFile,
    InlineFile,
    InvalidReference,
    LocalFile,
    Reference,
    ReplicateModel,
    S3Object,
    UrlFile,
)
from serve.lora.uploaded_file import UploadedFile
from serve.model_specs import EMBEDDED_LORAS
from serve.settings import LoraSettings, Settings

SETTINGS = LoraSettings(
    aliases={
        "sketch": "s3://studio-loras/sketch.safetensors",
        "style": " /loras/style.safetensors ",
        "fofr/mirrored": "https://mirror.example.com/fofr.tar",
    },
    folders=(Path("/loras"), Path("/mnt/more/")),
)
VERSION = "d592f697"
LONG_VERSION = "3d1bbb3f1ea8ee8a4c8fdd2f4b5aaa0c1ea3f5a8c8b9d1b2a3f4e5d6c7b8a990"
COMMIT = "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
MODEL = ReplicateModel("fofr", "flux-80s-cyberpunk")
VERSIONED = ReplicateModel("fofr", "flux-80s-cyberpunk", VERSION)
REPOSITORY = HubFile("multimodalart/flux-tarot-v1")
FILE = HubFile("multimodalart/flux-tarot-v1", "main", "tarot.safetensors")
URL = UrlFile("https://example.com/x.safetensors")
WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"

FORMS: dict[Reference, tuple[str, ...]] = {
    MODEL: (
        "fofr/flux-80s-cyberpunk",
        " fofr/flux-80s-cyberpunk\n",
        "fofr/flux-80s-cyberpunk/",
        "Fofr/Flux-80s-Cyberpunk",
        "replicate.com/fofr/flux-80s-cyberpunk",
        "https://replicate.com/fofr/flux-80s-cyberpunk",
        "https://replicate.com/fofr/flux-80s-cyberpunk/",
        "http://www.replicate.com/fofr/flux-80s-cyberpunk?utm_source=x#readme",
        "HTTPS://Replicate.com/fofr/flux-80s-cyberpunk",
        "https://replicate.com./fofr/flux-80s-cyberpunk",
        "https://replicate.com:443/fofr/flux-80s-cyberpunk",
        "https://replicate.com/fofr/flux-80s-cyberpunk/api/learn-more",
        "https://replicate.com/fofr/flux-80s-cyberpunk/examples#x",
        "https://replicate.com/fofr/flux-80s-cyberpunk/versions",
        "r8.im/fofr/flux-80s-cyberpunk",
        '"fofr/flux-80s-cyberpunk"',
        " 'fofr/flux-80s-cyberpunk ' ",
        "<https://replicate.com/fofr/flux-80s-cyberpunk>",
        "`fofr/flux-80s-cyberpunk`",
    ),
    VERSIONED: (
        f"fofr/flux-80s-cyberpunk/{VERSION}",
        f"fofr/flux-80s-cyberpunk:{VERSION}",
        f"fofr/flux-80s-cyberpunk/versions/{VERSION}",
        f"fofr/flux-80s-cyberpunk:{VERSION.upper()}",
        f"replicate.com/fofr/flux-80s-cyberpunk:{VERSION}",
        f"replicate.com/fofr/flux-80s-cyberpunk/{VERSION}",
        f"replicate.com/fofr/flux-80s-cyberpunk/versions/{VERSION}",
        f"https://replicate.com/fofr/flux-80s-cyberpunk/versions/{VERSION}/",
        f"r8.im/fofr/flux-80s-cyberpunk@sha256:{VERSION}",
    ),
    ReplicateModel("a_b", "c.d-e", LONG_VERSION): (f"a_b/c.d-e:{LONG_VERSION}",),
    REPOSITORY: (
        "huggingface.co/multimodalart/flux-tarot-v1",
        "https://huggingface.co/multimodalart/flux-tarot-v1",
        "https://huggingface.co/multimodalart/flux-tarot-v1/",
        "http://huggingface.co/multimodalart/flux-tarot-v1?library=diffusers",
        "hf.co/multimodalart/flux-tarot-v1",
        "https://hf.co/multimodalart/flux-tarot-v1",
        "huggingface.co/multimodalart/flux-tarot-v1/tree/main",
        "https://huggingface.co/multimodalart/flux-tarot-v1/tree/main/",
        "huggingface.co/multimodalart/flux-tarot-v1@main",
        "https://huggingface.co:443/multimodalart/flux-tarot-v1",
        "https://huggingface.co./multimodalart/flux-tarot-v1",
        "HTTPS://HuggingFace.co/multimodalart/flux-tarot-v1.git",
    ),
    FILE: (
        "huggingface.co/multimodalart/flux-tarot-v1/tarot.safetensors",
        "https://huggingface.co/multimodalart/flux-tarot-v1/tarot.safetensors",
        "hf.co/multimodalart/flux-tarot-v1/tarot.safetensors",
        "multimodalart/flux-tarot-v1/tarot.safetensors",
        "https://huggingface.co/multimodalart/flux-tarot-v1/resolve/main/tarot.safetensors",
        "https://huggingface.co/multimodalart/flux-tarot-v1/resolve/main/tarot.safetensors?download=true",
        "huggingface.co/multimodalart/flux-tarot-v1/resolve/main/tarot.safetensors",
        "https://huggingface.co/multimodalart/flux-tarot-v1/blob/main/tarot.safetensors",
        "hf.co/multimodalart/flux-tarot-v1/blob/main/tarot.safetensors",
        "https://huggingface.co/multimodalart/flux-tarot-v1/raw/main/tarot.safetensors",
        "huggingface.co/multimodalart/flux-tarot-v1@main/tarot.safetensors",
    ),
    HubFile("o/r", "v1.0", "a/b c/x.safetensors"): (
        "huggingface.co/o/r/resolve/v1.0/a/b%20c/x.safetensors",
        "huggingface.co/o/r@v1.0/a/b c/x.safetensors",
        "https://hf.co/o/r/blob/v1.0/a/b%20c/x.safetensors",
    ),
    HubFile("o/r", "main", "a/x.safetensors"): ("o/r/a/x.safetensors", "huggingface.co/o/r/a/x.safetensors"),
    HubFile("o/r", COMMIT): (
        f"huggingface.co/o/r@{COMMIT}",
        f"https://huggingface.co/o/r/tree/{COMMIT}",
        f"https://huggingface.co/o/r/commit/{COMMIT}",
    ),
    HubFile("o/r", "main", "loras"): ("huggingface.co/o/r/tree/main/loras", "huggingface.co/o/r/loras/"),
    HubFile("o/r", "refs/pr/3", "x.safetensors"): (
        "huggingface.co/o/r/resolve/refs%2Fpr%2F3/x.safetensors",
        "huggingface.co/o/r/blob/refs/pr/3/x.safetensors",
        "huggingface.co/o/r@refs/pr/3/x.safetensors",
    ),
    HubFile("o/r", "refs/pr/3"): ("huggingface.co/o/r/tree/refs%2Fpr%2F3", "huggingface.co/o/r@refs/pr/3"),
    HubFile("o/r", "main", "lora.zip"): ("huggingface.co/o/r/resolve/main/lora.zip",),
    CivitaiFile(model=633553): (
        "civitai.com/models/633553",
        "https://civitai.com/models/633553",
        "https://civitai.com/models/633553/",
        "https://civitai.com/models/633553/crystal-clear-super",
        "https://www.civitai.com/models/633553/crystal-clear-super/?tab=1",
        "https://civitai.green/models/633553",
        "https://civitai.red/models/633553/crystal-clear-super",
        "www.civitai.red/models/633553",
        "https://civitai.com/api/v1/models/633553",
        "air:flux1:lora:civitai:633553",
        "civitai:633553",
        "urn:air:flux1:lora:civitai:633553",
    ),
    CivitaiFile(version=706528): (
        "civitai.com/models/633553?modelVersionId=706528",
        "https://civitai.com/models/633553/crystal-clear-super?modelVersionId=706528",
        "https://civitai.com/models/633553?tab=1&modelversionid=706528#comments",
        "civitai.com/api/download/models/706528",
        "https://civitai.com/api/download/models/706528?type=Model&format=SafeTensor",
        "https://civitai.com/model-versions/706528",
        "https://civitai.com/api/v1/model-versions/706528",
        "https://civitai.red/models/633553/crystal-clear-super?modelVersionId=706528",
        "https://civitai.red/model-versions/706528",
        "HTTPS://CIVITAI.RED/api/download/models/706528/",
        "civitai:633553@706528",
        "CIVITAI:633553@706528",
        "urn:air:flux1:lora:civitai:633553@706528",
    ),
    CivitaiFile(version=7, filters=(("fp", "fp16"), ("size", "pruned"))): (
        "civitai.com/api/download/models/7?type=Model&format=SafeTensor&size=pruned&fp=fp16",
        "https://civitai.com/api/download/models/7?fp=FP16&size=Pruned",
    ),
    CivitaiFile(version=7, token="mine"): (
        "https://civitai.com/api/download/models/7?token=mine",
        "https://civitai.red/api/download/models/7?token=mine",
    ),
    URL: (
        "https://example.com/x.safetensors",
        "HTTPS://EXAMPLE.com:443/x.safetensors#part",
        "https://example.com./x.safetensors",
    ),
    UrlFile("https://example.com/a/X.SafeTensors?sig=a%2Fb&x=1"): (
        "https://example.com/a/X.SafeTensors?sig=a%2Fb&x=1",
    ),
    UrlFile("https://replicate.delivery/pbxt/abc/trained_model.tar"): (
        "https://replicate.delivery/pbxt/abc/trained_model.tar",
    ),
    UrlFile("https://pbxt.replicate.delivery/abc/trained_model.tar?x=1"): (
        "https://pbxt.replicate.delivery/abc/trained_model.tar?x=1",
    ),
    UrlFile("https://example.com/x.tar.gz"): ("https://example.com/x.tar.gz",),
    UrlFile("https://example.com/x.tgz"): ("https://example.com/x.tgz",),
    UrlFile("https://example.com/x.ZIP"): ("https://example.com/x.ZIP",),
    UrlFile("https://example.com/download/5"): ("https://example.com/download/5", "https://example.com/download/5#x"),
    UrlFile("https://example.com/page?file=x.safetensors"): ("https://example.com/page?file=x.safetensors",),
    UrlFile("https://example.com/?id=5"): ("https://example.com/?id=5",),
    UrlFile("https://cdn-lfs.hf.co/repos/ab/cd?sig=1"): ("https://cdn-lfs.hf.co/repos/ab/cd?sig=1",),
    UrlFile("https://github.com/o/r/raw/main/x.safetensors"): (
        "https://github.com/o/r/raw/main/x.safetensors",
        "https://github.com/o/r/blob/main/x.safetensors",
    ),
    UrlFile("https://github.com/o/r/releases/download/v1/x.zip"): (
        "https://github.com/o/r/releases/download/v1/x.zip",
    ),
    ArchiveMember(UrlFile("https://example.com/x.tar?s=1"), "run/a b.safetensors"): (
        "https://example.com/x.tar?s=1#run/a%20b.safetensors",
        "https://example.com/x.tar?s=1#/run/a b.safetensors",
        "'https://example.com/x.tar?s=1#./run\\a b.safetensors'",
    ),
    ArchiveMember(UrlFile("https://example.com/x.tar?s=1"), "run/b.SAFETENSORS"): (
        "https://example.com/x.tar?s=1#run/b.SAFETENSORS",
    ),
    ArchiveMember(UrlFile("https://example.com/download/5"), "run/b.safetensors"): (
        "https://example.com/download/5#run/b.safetensors",
    ),
    ArchiveMember(MODEL, "run/b.safetensors"): (
        "fofr/flux-80s-cyberpunk#run/b.safetensors",
        "https://replicate.com/fofr/flux-80s-cyberpunk#run/b.safetensors",
    ),
    ArchiveMember(HubFile("o/r", "main", "lora.zip"), "b.safetensors"): (
        "https://huggingface.co/o/r/blob/main/lora.zip#b.safetensors",
        "o/r/lora.zip#b.safetensors",
    ),
    ArchiveMember(S3Object("b.c", "deep/er.tar"), "b.safetensors"): ("s3://b.c/deep/er.tar#b.safetensors",),
    ArchiveMember(LocalFile(Path("/loras/x.zip")), "b.safetensors"): (
        "/loras/x.zip#b.safetensors",
        "file:///loras/x.zip#b.safetensors",
    ),
    ArchiveMember(InlineFile(WEIGHTS), "b.safetensors"): (
        f"data:;base64,{base64.b64encode(WEIGHTS).decode()}#b.safetensors",
    ),
    S3Object("b.c", "no#1.safetensors"): ("s3://b.c/no#1.safetensors",),
    LocalFile(Path("/loras/no#1.safetensors")): ("/loras/no#1.safetensors",),
    S3Object("studio-loras", "sketch.safetensors"): (
        "s3://studio-loras/sketch.safetensors",
        "sketch",
        " sketch ",
        '"sketch"',
    ),
    S3Object("b.c", "deep/er.tar"): ("S3://b.c/deep/er.tar",),
    EmbeddedLora("sketch"): ("embedded:sketch", " Embedded:Sketch\n"),
    LocalFile(Path("/loras/style.safetensors")): (
        "/loras/style.safetensors",
        "/loras/./other/../style.safetensors",
        "file:///loras/style.safetensors",
        "file://localhost/loras/style.safetensors",
        "style",
    ),
    LocalFile(Path("/mnt/more/a b.safetensors")): ("file:///mnt/more/a%20b.safetensors", "/mnt/more/a b.safetensors"),
    UrlFile("https://mirror.example.com/fofr.tar"): ("fofr/mirrored",),
    InlineFile(WEIGHTS): (
        f"data:application/octet-stream;base64,{base64.b64encode(WEIGHTS).decode()}",
        f"data:;base64,{base64.b64encode(WEIGHTS).decode()}",
        f" DATA:application/x-tar;base64,{base64.b64encode(WEIGHTS).decode()} ",
        "data:,%02%00%00%00%00%00%00%00%7B%7D",
    ),
}
CASES = [(text, reference) for reference, texts in FORMS.items() for text in texts]


@pytest.mark.parametrize(("text", "reference"), CASES, ids=[text.strip()[:80] for text, _ in CASES])
def test_accepted_form_is_parsed(text: str, reference: Reference) -> None:
    parsed = parse_reference(text, SETTINGS)
    assert parsed == reference
    assert parsed.key == reference.key


def test_different_references_have_different_keys() -> None:
    keys = {reference.key for reference in FORMS}
    assert len(keys) == len(FORMS)
    assert all(len(key) == 64 for key in keys)


def test_references_can_be_pickled() -> None:
    for reference in FORMS:
        assert pickle.loads(pickle.dumps(reference)) == reference


UNRECOGNIZED = (
    "",
    "  ",
    "cyberpunk",
    "owner/",
    "a b/c",
    "owner/name/not-a-version",
    "owner/name:latest",
    "embedded:",
    "embedded:../dev",
    "embedded:oil",
    "owner/name:",
    "owner/name/versions/xyz",
    "owner/name?x=1",
    "owner/name.safetensors",
    "example.com/x.safetensors",
    "example.com/a/x.safetensors",
    "replicate.com",
    "https://replicate.com/",
    "replicate.com/fofr",
    "https://replicate.com/docs/guides",
    "https://replicate.com/p/zxcvbnm12345",
    "https://replicate.com/collections/flux",
    "https://replicate.com/fofr/../flux",
    "https://replicate.com/fofr/%2e%2e",
    "huggingface.co",
    "huggingface.co/gpt2",
    "huggingface.co/datasets/o",
    "https://huggingface.co/spaces/o/r",
    "https://huggingface.co/datasets/o/r/resolve/main/x.safetensors",
    "https://huggingface.co/o/r/resolve/main",
    "https://huggingface.co/o/r/blob/",
    "https://huggingface.co/o/r/resolve/main/../x.safetensors",
    "huggingface.co/o/r@",
    "huggingface.co/o r/n",
    "civitai.com",
    "civitai.com/images/5",
    "civitai.com/models/abc",
    "civitai.com/models/5?modelVersionId=abc",
    "civitai.com/models/-5",
    "civitai.com/models/٣",
    "civitai.com/api/download/models/",
    "civitai:",
    "civitai:x",
    "civitai:5@",
    "civitai:5@x",
    "urn:air:flux1:lora:huggingface:5",
    "https://example.com/",
    "https://example.com",
    "https://github.com/o/r",
    "https://github.com/o/r/tree/main/loras",
    "https://gitlab.com/o/r",
    "https://huggingface.co/api/models/o/r",
    "https://huggingface.co:443/spaces/o/r",
    "https://replicate.com./collections/flux",
    "https://civitai.red/images/5",
    "owner/name/about",
    "owner/name#fragment",
    "s3://bucket/x#a.safetensors/b",
    "https://example.com/x.zip#a%0A.safetensors",
    "'",
    '"\'owner"',
    "ftp://example.com/x.safetensors",
    "gs://bucket/x.safetensors",
    "s3://bucket",
    "s3://UP/x.safetensors",
    "file://host/loras/x.safetensors",
    "/loras",
    "https://example.com/" + "x" * 5000 + ".safetensors",
    "owner/na\nme",
    "owner/na\0me",
)


@pytest.mark.parametrize("text", UNRECOGNIZED, ids=[repr(text)[:60] for text in UNRECOGNIZED])
def test_unrecognized_text_is_rejected_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text, SETTINGS)
    for form in (
        "owner/name:version",
        "huggingface.co/owner/repo",
        "civitai:ID@V",
        "https URL",
        "data: URI",
        "embedded:sketch",
        "s3://",
        "#path/in/archive.safetensors",
        "lora.folders",
        "fofr/mirrored, sketch, style",
    ):
        assert form in str(caught.value)


EXAMPLES = {
    InlineFile: ("data:,x",),
    UrlFile: tuple(f"https://example.com/x{suffix}" for suffix in ACCEPTED_SUFFIXES),
    LocalFile: ("/loras/x.safetensors",),
    ArchiveMember: ("https://example.com/x.zip#path/in/archive.safetensors",),
}
"""Examples of listed forms that are described in words."""


def test_every_kind_of_reference_is_listed() -> None:
    assert {kind.__name__ for kind in LISTED_FORMS} == {kind.__name__ for kind in Reference.__subclasses__()}


@pytest.mark.parametrize("kind", [kind for kind in LISTED_FORMS if kind is not UploadedFile])
def test_listed_form_is_parsed(kind: type[Reference]) -> None:
    words = re.findall(r"[^ ,()]*\w[/:][^ ,()]*", LISTED_FORMS[kind].replace("a data: URI", ""))
    if kind in EXAMPLES:
        words = list(EXAMPLES[kind])
    assert words
    for word in words:
        text = re.sub(r"\b(ID|V)\b", "5", word).replace("version", "0123abcd")
        assert type(parse_reference(text, SETTINGS)) is kind, text
    if kind is UrlFile:
        assert all(suffix in LISTED_FORMS[kind] for suffix in ACCEPTED_SUFFIXES)


def test_local_files_are_listed_only_with_lora_folders() -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference("x", LoraSettings())
    assert "lora.folders" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("http://example.com/x.safetensors", r"lora\.allow_http"),
        ("https://me:secret@example.com/x.safetensors", "password"),
        ("https://[::1/x.safetensors", "valid URL"),
        ("https:///x.safetensors", "host"),
        ("huggingface.co/o/r/pytorch_lora_weights.bin", "safetensors"),
        ("huggingface.co/o/r/resolve/main/lora.ckpt", "safetensors"),
        ("civitai.com/api/download/models/5?format=PickleTensor", "safetensors"),
        ("https://example.com/x.bin", "safetensors"),
        ("https://example.com/x.PT?sig=1", r"\.pt"),
        ("s3://bucket/x.ckpt", r"\.ckpt"),
        ("/loras/x.gguf", r"\.gguf"),
        ("owner/lora.pt", r"\.pt"),
        ("http://example.com/download/5", r"lora\.allow_http"),
        ("ftp://example.com/x", "owner/name"),
        ("/etc/passwd", r"lora\.folders"),
        ("/loras/../etc/x.safetensors", r"lora\.folders"),
        ("/loras-of-others/x.safetensors", r"lora\.folders"),
        ("file:///loras/%2e%2e/etc/x.safetensors", r"lora\.folders"),
        ("file:///loras/x%00.safetensors", r"lora\.folders"),
        ("//loras/x.safetensors", r"lora\.folders"),
        ("data:application/octet-stream;base64,???", "base64"),
        ("data:nothing", "comma"),
    ],
)
def test_disallowed_reference_is_rejected_with_the_reason(text: str, word: str) -> None:
    with pytest.raises(InvalidReference, match=word):
        parse_reference(text, SETTINGS)


def test_oversized_data_uri_is_rejected() -> None:
    small = SETTINGS.model_copy(update={"fetch": SETTINGS.fetch.model_copy(update={"max_bytes": 10})})
    with pytest.raises(InvalidReference, match="10 bytes"):
        parse_reference(f"data:,{'x' * 11}", small)


def test_local_file_is_rejected_without_lora_folders() -> None:
    with pytest.raises(InvalidReference, match=r"lora\.folders"):
        parse_reference("/loras/x.safetensors", LoraSettings())


def test_default_loras_of_the_handwriting_and_sketch_model_are_embedded() -> None:
    (model,) = (model for model in Settings().served_models if model.name == "flux-handwriting-and-sketch")
    weights = [model.default_inputs[field] for field in ("replicate_weights", "extra_lora")]
    assert [parse_reference(text, LoraSettings()) for text in weights] == [
        EmbeddedLora(name) for name in EMBEDDED_LORAS
    ]


def test_plain_http_is_accepted_if_allowed() -> None:
    parsed = parse_reference("http://example.com/x.safetensors", LoraSettings(allow_http=True))
    assert parsed == UrlFile("http://example.com/x.safetensors")


def test_check_aliases_rejects_an_alias_of_an_alias() -> None:
    check_aliases(SETTINGS)
    with pytest.raises(ValueError, match=r"lora\.aliases\.one: "):
        check_aliases(LoraSettings(aliases={"one": "two", "two": "o/r"}))


DISPLAY_NAMES = {
    MODEL: "fofr/flux-80s-cyberpunk",
    VERSIONED: f"fofr/flux-80s-cyberpunk:{VERSION}",
    REPOSITORY: "huggingface.co/multimodalart/flux-tarot-v1",
    HubFile("o/r", "v1", "a/x.safetensors"): "huggingface.co/o/r@v1/a/x.safetensors",
    CivitaiFile(model=5): "civitai:5",
    CivitaiFile(version=7, filters=(("fp", "fp16"),), token="secret"): "civitai.com/model-versions/7 fp=fp16",
    UrlFile("https://example.com/x.tar?sig=secret"): "https://example.com/x.tar",
    S3Object("b", "x.tar"): "s3://b/x.tar",
    LocalFile(Path("/secret/x.tar")): "x.tar",
    EmbeddedLora("sketch"): "embedded:sketch",
    InlineFile(b"secret"): "data:",
    ArchiveMember(UrlFile("https://example.com/x.tar?sig=secret"), "a/b.safetensors"): (
        "https://example.com/x.tar#a/b.safetensors"
    ),
}


@pytest.mark.parametrize(("reference", "display_name"), DISPLAY_NAMES.items())
def test_display_name_has_no_secrets(reference: Reference, display_name: str) -> None:
    assert reference.display_name == display_name
    if not isinstance(reference, LocalFile):
        assert "secret" not in repr(reference)


@pytest.mark.parametrize(
    ("reference", "may_change"),
    [
        (MODEL, True),
        (VERSIONED, False),
        (REPOSITORY, True),
        (HubFile("o/r", COMMIT, "x.safetensors"), False),
        (HubFile("o/r", "refs/pr/3"), True),
        (CivitaiFile(model=5), True),
        (CivitaiFile(version=7), False),
        (URL, True),
        (S3Object("b", "x.tar"), True),
        (LocalFile(Path("/x.tar")), True),
        (EmbeddedLora("sketch"), True),
        (InlineFile(b"x"), False),
        (ArchiveMember(URL, "x.safetensors"), True),
        (ArchiveMember(VERSIONED, "x.safetensors"), False),
    ],
)
def test_only_versions_commits_and_inline_files_never_change(reference: Reference, may_change: bool) -> None:
    assert reference.may_change is may_change
