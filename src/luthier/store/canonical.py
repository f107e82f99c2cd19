"""One spelling for each JSON value, and its SHA-256."""

import hashlib
import json


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces, ASCII.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
        TypeError: something that is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(value: object) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
