"""Settings of the tokenize stage."""

from typing import Any

from essence.settings import TokenizeSettings
from essence.settings.protocol import PROTOCOLS


def tokenize_settings(**changes: Any) -> TokenizeSettings:
    plain = {
        "format": "conversations",
        "keep_generation_header": True,
        "markers": "exact",
        "faulty_rows": "reject",
        "max_row_characters": 100_000,
        "max_rejected_share": 0.5,
        "decontamination": {"problem_fields": {}, "overlap_words": 13, "remove": False},
    }
    return TokenizeSettings.model_validate({**plain, **changes})


def protocol_settings(protocol: str = "corrected", **changes: Any) -> TokenizeSettings:
    """As a protocol sets them; most rows may be rejected."""
    rules = PROTOCOLS["released" if protocol == "released" else "corrected"]
    given = {
        "keep_generation_header": rules.keep_generation_header,
        "markers": rules.markers,
        "faulty_rows": rules.faulty_rows,
        "max_row_characters": 10_000,
        "max_rejected_share": 0.9,
    }
    return tokenize_settings(**{**given, **changes})
