"""Converts schemas of OpenAPI 3.0 for `jsonschema`."""

from typing import Any


def strict(schema: Any) -> Any:
    """`schema` in JSON Schema's terms: with null where it is allowed, and without properties that it does not list."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {key: strict(value) for key, value in schema.items() if key != "nullable"}
    if "properties" in converted and isinstance(
        schema["properties"].get("id", schema["properties"].get("title")), dict
    ):
        converted["additionalProperties"] = False
    return {"anyOf": [converted, {"type": "null"}]} if schema.get("nullable") is True else converted
