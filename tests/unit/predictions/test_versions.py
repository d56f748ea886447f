"""How a caller names a served model."""

import pytest

from serve.errors import NotFound, UnknownVersion
from serve.predictions.request import resolve_model, resolve_version
from serve.settings import ServedModel, Settings

SETTINGS = Settings(
    served_models=(
        ServedModel(owner="me", name="first", versions=("new", "old")),
        ServedModel(owner="you", name="second", versions=("d592f697",)),
    )
)


@pytest.mark.parametrize(
    ("reference", "model", "version"),
    [
        (None, "me/first", "new"),
        ("old", "me/first", "old"),
        ("me/first", "me/first", "new"),
        ("me/first:old", "me/first", "old"),
        ("d592f697", "you/second", "d592f697"),
        ("you/second:d592f697", "you/second", "d592f697"),
    ],
)
def test_a_version_is_named_by_id_by_model_or_by_both(reference: str | None, model: str, version: str) -> None:
    served = resolve_version(SETTINGS, reference)
    assert (served.model.full_name, served.version) == (model, version)


@pytest.mark.parametrize("reference", ["", "nobody", "me/second", "me/first:", "me/first:d592f697", "first", "\ud800"])
def test_any_other_version_is_unknown(reference: str) -> None:
    with pytest.raises(UnknownVersion, match="no model served here has the version"):
        resolve_version(SETTINGS, reference)


def test_a_model_in_a_path_is_found_or_not() -> None:
    assert resolve_model(SETTINGS, "you", "second").version == "d592f697"
    with pytest.raises(NotFound, match="'me/second'"):
        resolve_model(SETTINGS, "me", "second")
