"""Digest of config values: the same settings give the same digest, in whatever order or number format they were written."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def digest_of(value: Any) -> str:
    """First 16 hex digits of the sha256 of `value` as canonical JSON.

    `value` is a config model, a JSON-able value, or a nesting of both. Raises TypeError or ValueError for anything that JSON cannot hold.
    """
    canonical = json.dumps(
        value, default=_dump, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _dump(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot digest a {type(value).__name__}: {value!r}")
