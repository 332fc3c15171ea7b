"""TODO."""

from __future__ import annotations

from typing import Any


def card_text(card: dict[str, Any]) -> str:
    """An evaluation card in one line."""
    return "  ".join(f"{key} {card[key]:.4g}" for key in ("nmse", "l0", "dead", "dense") if isinstance(card.get(key), int | float))
