"""The demo from its command line to its files, against a fake service."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from scripts import demo
from serve.launch.subprocess_service import free_port, local_service
from tests.unit.scripts.conftest import SUCCEEDED, FakeService

Demo = Callable[..., int]
Captured = pytest.CaptureFixture[str]


def test_a_prompt_alone_becomes_one_picture_here(run_demo: Demo, fake: FakeService, capsys: Captured) -> None:
    fake.behave(headers={"Server-Timing": "text;dur=12.4, denoise;dur=1700"})
    assert run_demo("a red sailboat") == 0
    assert Path("out-0.webp").read_bytes() == b"a webp"
    assert capsys.readouterr().out.splitlines() == [
        "out-0.webp",
        "seed    42",
        "pool    dev-bf16",
        "stages  text 12 ms, denoise 1,700 ms",
    ]
    assert not fake.left_something_running()


def test_only_what_was_asked_for_is_sent(run_demo: Demo, fake: FakeService) -> None:
    run_demo("a cat")
    assert fake.asked["path"] == "/v1/predictions"
    assert fake.asked["body"] == {"input": {"prompt": "a cat"}}
    assert fake.asked["headers"]["prefer"] == "wait"
    assert "authorization" not in fake.asked["headers"]


def test_every_option_reaches_the_service_in_its_own_type(run_demo: Demo, fake: FakeService) -> None:
    options = "--model schnell --go-fast --num-outputs 2 --seed 7 --input megapixels=0.25 --input guidance_scale=2.5"
    run_demo("a cat", *options.split(), "--input", "output_format=png")
    assert fake.asked["body"]["input"] == {
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
        ("prompt=@home", "prompt", "@home"),
        ("extra_lora=", "extra_lora", ""),
    ],
)
def test_a_value_is_json_where_it_can_be_and_text_where_not(text: str, key: str, value: object) -> None:
    assert demo.read_input(text) == (key, value)


def test_a_local_picture_goes_along_as_a_data_uri(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"pixels")
    assert demo.read_input(f"mask=@{tmp_path}/in.png") == ("mask", "data:image/png;base64,cGl4ZWxz")


def test_the_token_of_the_environment_is_sent(
    run_demo: Demo, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUX_SERVE_TOKEN", "s3cret")
    run_demo("a cat")
    assert fake.asked["headers"]["authorization"] == "Bearer s3cret"


def test_pictures_are_saved_by_index_and_format_in_the_folder_that_was_named(run_demo: Demo, fake: FakeService) -> None:
    fake.behave(prediction={**SUCCEEDED, "output": ["data:image/jpeg,a%20jpg", "/outputs/1"]})
    assert run_demo("a cat", "--out", "new/folder") == 0
    saved = {path.name: path.read_bytes() for path in Path("new/folder").iterdir()}
    assert saved == {"out-0.jpg": b"a jpg", "out-1.png": b"a png"}


def test_a_prediction_that_is_not_over_is_asked_for_until_it_is(
    run_demo: Demo, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "POLL_S", 0.01)
    going = {**SUCCEEDED, "output": None}
    fake.behave(prediction={**going, "status": "starting"}, polls=[{**going, "status": "processing"}, {**SUCCEEDED}])
    assert run_demo("a cat") == 0
    assert Path("out-0.webp").exists()


def test_the_seed_is_read_from_the_log_where_the_metrics_have_none() -> None:
    assert demo.report([], {"logs": "Using seed: 41\nmore", "metrics": None}, {}) == ["seed    41"]


def test_a_service_that_runs_already_is_used_and_left_alone(run_demo: Demo, fake: FakeService) -> None:
    with local_service() as service, httpx.Client(trust_env=False) as client:
        assert run_demo("a cat", "--url", service.url) == 0
        assert client.get(f"{service.url}/health-check").is_success


def test_nothing_is_asked_before_the_service_is_open(
    run_demo: Demo, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "POLL_S", 0.01)
    fake.behave(statuses=["STARTING", "STARTING", "READY"])
    assert run_demo("a cat") == 0
    assert fake.asked["health_checks"] == 3


def test_the_service_starts_on_the_port_that_was_named(run_demo: Demo, fake: FakeService) -> None:
    port = free_port()
    run_demo("a cat", "--port", str(port))
    assert fake.asked["headers"]["host"] == f"127.0.0.1:{port}"


def test_progress_goes_to_standard_error(run_demo: Demo, capsys: Captured) -> None:
    run_demo("a cat")
    assert capsys.readouterr().err.splitlines() == ["demo: loading the models", "demo: drawing"]


FAILURES = [
    ({"prediction": {**SUCCEEDED, "status": "failed", "error": "NSFW"}}, "demo: the prediction failed: NSFW"),
    ({"prediction": {**SUCCEEDED, "status": "canceled"}}, "demo: the prediction canceled: no reason given"),
    (
        {"prediction": {"detail": "- width: is needed"}, "code": 422},
        "demo: the service answered 422: - width: is needed",
    ),
    ({"prediction": "full", "code": 429}, "demo: the service answered 429: Too Many Requests"),
    ({"fault": "port 8000 is taken"}, "demo: the service did not start: port 8000 is taken"),
]


@pytest.mark.parametrize(("behaviour", "line"), FAILURES)
def test_a_failure_is_its_reason_and_exit_status_1(
    run_demo: Demo, fake: FakeService, capsys: Captured, behaviour: dict[str, object], line: str
) -> None:
    fake.behave(**behaviour)
    assert run_demo("a cat") == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == line
    assert captured.out == ""
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--input", "width"), "demo: --input width: should be KEY=VALUE"),
        (("--input", "image=@none.png"), "demo: cannot read none.png: No such file or directory"),
        (("--out", "/dev/null/x"), "demo: cannot write to /dev/null/x: Not a directory"),
    ],
)
def test_what_the_caller_got_wrong_is_one_line(
    run_demo: Demo, capsys: Captured, arguments: tuple[str, ...], line: str
) -> None:
    assert run_demo("a cat", *arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_a_fault_of_the_service_is_told_once(run_demo: Demo, fake: FakeService, capsys: Captured) -> None:
    fake.behave(fault="port 8000 is taken")
    run_demo("a cat")
    assert capsys.readouterr().err.count("taken") == 1


def test_an_address_where_nobody_listens_is_one_line(run_demo: Demo, capsys: Captured) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert run_demo("a cat", "--url", url) == 1
    assert f"demo: no answer from {url}" in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupted_demo_stops_what_it_started(run_demo: Demo, fake: FakeService) -> None:
    fake.behave(interrupts_its_client=True)
    assert run_demo("a cat") == 130
    assert fake.asked["body"] == {"input": {"prompt": "a cat"}}
    assert not fake.left_something_running()


def test_the_demo_takes_no_abbreviated_options() -> None:
    with pytest.raises(SystemExit):
        demo.parse(["a cat", "--num", "2"])


def test_the_environment_is_left_as_it_was(run_demo: Demo) -> None:
    before = dict(os.environ)
    run_demo("a cat")
    assert json.dumps(before, sort_keys=True) == json.dumps(dict(os.environ), sort_keys=True)
