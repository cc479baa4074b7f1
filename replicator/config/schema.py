"""The JSON schema of a link file, for editors and for `replicator schema`, printed from the models."""

from typing import Any

import msgspec

from replicator.config.fields import REAL_TYPE
from replicator.config.models import LinkFile


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of a link file's YAML, read as JSON. A fresh dict each time."""
    schema: dict[str, Any] = _with_real_types(msgspec.json.schema(LinkFile))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "replicator link file",
        **schema,
    }


def _with_real_types(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_real_types(item) for item in node]
    if not isinstance(node, dict):
        return node
    spelled = {"type": node[REAL_TYPE]} if REAL_TYPE in node else {}
    rest = {key: _with_real_types(value) for key, value in node.items() if key != REAL_TYPE}
    return rest | spelled
