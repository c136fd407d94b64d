"""The facts of a small model card, for tests."""

from typing import Any

from distill.models.hub.card import CardFacts


def facts(**changes: Any) -> CardFacts:
    known: dict[str, Any] = {
        "repo": "alice/net",
        "architecture": "resnet18",
        "parameters": 11_000_000,
        "classes": ("ant", "bee"),
        "num_classes": 2,
        "view": {
            "input_size": [3, 64, 64],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "crop_pct": 0.95,
            "interpolation": "bicubic",
        },
        "record": {},
        "weights_sha256": "a" * 64,
        "licence": None,
    }
    return CardFacts(**{**known, **changes})
