"""The demo, from its command line to its output files, with a fake service."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from scripts import demo
from serve.launch.subprocess_service import free_port, local_service
from tests.fake_service import SUCCEEDED_PREDICTION, FakeService

Demo = Callable[..., int]
Captured = pytest.CaptureFixture[str]


def test_prompt_alone_saves_an_image_and_prints_a_report(
    run_demo: Demo, fake_service: FakeService, capsys: Captured
) -> None:
    fake_service.configure(headers={"Server-Timing": "text;dur=12.4, denoise;dur=1700"})
    assert run_demo("a red sailboat") == 0
    assert Path("out-0.webp").read_bytes() == b"a webp"
    assert capsys.readouterr().out.splitlines() == [
        "out-0.webp",
        "seed    42",
        "pool    dev-bf16",
        "stages  text 12 ms, denoise 1,700 ms",
    ]
    assert not fake_service.has_running_processes()


def test_only_given_inputs_are_sent(run_demo: Demo, fake_service: FakeService) -> None:
    run_demo("a cat")
    assert fake_service.request["path"] == "/v1/predictions"
    assert fake_service.request["body"] == {"input": {"prompt": "a cat"}}
    assert fake_service.request["headers"]["prefer"] == "wait"
    assert "authorization" not in fake_service.request["headers"]


def test_options_are_sent_with_their_types(run_demo: Demo, fake_service: FakeService) -> None:
    options = "--model schnell --go-fast --num-outputs 2 --seed 7 --input megapixels=0.25 --input guidance_scale=2.5"
    run_demo("a cat", *options.split(), "--input", "output_format=png")
    assert fake_service.request["body"]["input"] == {
        "prompt": "a cat",
        "model": "schnell",
        "go_fast": True,
        "num_outputs": 2,
        "seed": 7,
        "megapixels": 0.25,
        "guidance_scale": 2.5,
        "output_format": "png",
    }


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("width=640", "width", 640),
        ("go_fast=true", "go_fast", True),
        ("seed=null", "seed", None),
        ("aspect_ratio=16:9", "aspect_ratio", "16:9"),
        ("image=https://example.com/a.png?b=c", "image", "https://example.com/a.png?b=c"),
        ("prompt=@somewhere", "prompt", "@somewhere"),
        ("extra_lora=", "extra_lora", ""),
    ],
)
def test_input_value_is_json_or_text(text: str, key: str, value: object) -> None:
    assert demo.read_input(text) == (key, value)


def test_local_file_is_sent_as_a_data_uri(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"pixels")
    assert demo.read_input(f"mask=@{tmp_path}/in.png") == ("mask", "data:image/png;base64,cGl4ZWxz")


def test_token_from_the_environment_is_sent(
    run_demo: Demo, fake_service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUX_SERVE_TOKEN", "s3cret")
    run_demo("a cat")
    assert fake_service.request["headers"]["authorization"] == "Bearer s3cret"


def test_images_are_saved_by_index_and_format(run_demo: Demo, fake_service: FakeService) -> None:
    fake_service.configure(prediction={**SUCCEEDED_PREDICTION, "output": ["data:image/jpeg,a%20jpg", "/outputs/1"]})
    assert run_demo("a cat", "--out", "new/folder") == 0
    saved = {path.name: path.read_bytes() for path in Path("new/folder").iterdir()}
    assert saved == {"out-0.jpg": b"a jpg", "out-1.png": b"a png"}


def test_unfinished_prediction_is_polled(
    run_demo: Demo, fake_service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "POLL_S", 0.01)
    unfinished = {**SUCCEEDED_PREDICTION, "output": None}
    fake_service.configure(
        prediction={**unfinished, "status": "starting"},
        polls=[{**unfinished, "status": "processing"}, {**SUCCEEDED_PREDICTION}],
    )
    assert run_demo("a cat") == 0
    assert Path("out-0.webp").exists()


def test_seed_is_read_from_the_logs_if_the_metrics_have_none() -> None:
    assert demo.report([], {"logs": "Using seed: 41\nmore", "metrics": None}, {}) == ["seed    41"]


@pytest.mark.parametrize(
    ("inputs", "pool"),
    [
        ({}, "dev-bf16"),
        ({"go_fast": True}, "dev-fp8"),
        ({"model": "schnell", "replicate_weights": "embedded:sketch"}, "schnell"),
    ],
)
def test_service_starts_only_the_pool_of_the_prediction(inputs: dict[str, object], pool: str) -> None:
    options = demo.pool_arguments({"prompt": "a cat", **inputs})
    started = [option for option in options if option.endswith("min_replicas=1")]
    assert started == [f"pools.{pool}.scaling.min_replicas=1"]
    assert len([option for option in options if option.endswith("min_replicas=0")]) == 2


def test_invalid_inputs_are_reported_before_the_service_starts(
    run_demo: Demo, fake_service: FakeService, capsys: Captured
) -> None:
    assert run_demo("a cat", "--num-outputs", "9") == 1
    assert "num_outputs" in capsys.readouterr().err
    assert not (fake_service.folder / "alive.lock").exists()


def test_service_at_url_is_used_and_not_stopped(run_demo: Demo, fake_service: FakeService) -> None:
    with local_service() as service, httpx.Client(trust_env=False) as client:
        assert run_demo("a cat", "--url", service.url) == 0
        assert client.get(f"{service.url}/health-check").is_success


def test_prediction_is_sent_after_the_service_is_ready(
    run_demo: Demo, fake_service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "POLL_S", 0.01)
    fake_service.configure(statuses=["STARTING", "STARTING", "READY"])
    assert run_demo("a cat") == 0
    assert fake_service.request["health_checks"] == 3


def test_service_starts_on_the_given_port(run_demo: Demo, fake_service: FakeService) -> None:
    port = free_port()
    run_demo("a cat", "--port", str(port))
    assert fake_service.request["headers"]["host"] == f"127.0.0.1:{port}"


def test_progress_is_printed_to_stderr(run_demo: Demo, capsys: Captured) -> None:
    run_demo("a cat")
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "demo: loading the models"
    assert len(others) == 1
    assert others[0].startswith("demo: ")


FAILURES = [
    ({"prediction": {**SUCCEEDED_PREDICTION, "status": "failed", "error": "NSFW"}}, ["failed", "NSFW"]),
    ({"prediction": {**SUCCEEDED_PREDICTION, "status": "canceled"}}, ["canceled"]),
    (
        {"prediction": {"detail": "- width: is needed"}, "code": 422},
        ["422", "- width: is needed"],
    ),
    ({"prediction": "full", "code": 429}, ["429", "Too Many Requests"]),
    ({"error": "port 8000 is taken"}, ["not start", "port 8000 is taken"]),
]


@pytest.mark.parametrize(("behaviour", "words"), FAILURES)
def test_failure_exits_with_1_and_its_reason(
    run_demo: Demo, fake_service: FakeService, capsys: Captured, behaviour: dict[str, object], words: list[str]
) -> None:
    fake_service.configure(**behaviour)
    assert run_demo("a cat") == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("demo: ")
    assert all(word in last for word in words)
    assert captured.out == ""
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--input", "width"), ["--input width", "KEY=VALUE"]),
        (("--input", "image=@none.png"), ["none.png", "No such file"]),
        (("--out", "/dev/null/x"), ["/dev/null/x", "Not a directory"]),
    ],
)
def test_invalid_option_is_reported_in_one_line(
    run_demo: Demo, capsys: Captured, arguments: tuple[str, ...], words: list[str]
) -> None:
    assert run_demo("a cat", *arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("demo: ")
    assert all(word in last for word in words)


def test_error_of_the_service_is_printed_once(run_demo: Demo, fake_service: FakeService, capsys: Captured) -> None:
    fake_service.configure(error="port 8000 is taken")
    run_demo("a cat")
    assert capsys.readouterr().err.count("taken") == 1


def test_unreachable_url_is_reported_in_one_line(run_demo: Demo, capsys: Captured) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert run_demo("a cat", "--url", url) == 1
    assert url in capsys.readouterr().err.splitlines()[-1]


def test_interrupted_demo_stops_the_service(run_demo: Demo, fake_service: FakeService) -> None:
    fake_service.configure(interrupts_parent=True)
    assert run_demo("a cat") == 130
    assert fake_service.request["body"] == {"input": {"prompt": "a cat"}}
    assert not fake_service.has_running_processes()


def test_abbreviated_options_are_rejected() -> None:
    with pytest.raises(SystemExit):
        demo.parse(["a cat", "--num", "2"])


def test_environment_is_unchanged(run_demo: Demo) -> None:
    before = dict(os.environ)
    run_demo("a cat")
    assert json.dumps(before, sort_keys=True) == json.dumps(dict(os.environ), sort_keys=True)
