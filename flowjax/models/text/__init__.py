"""Text encoders: from token ids to the vectors that a network reads."""

from collections.abc import Callable

from flowjax.models.text.encoder import NoText, TextEncoder, with_text
from flowjax.models.text.transformer import embedding, transformer


def none() -> None:
    """No encoder: for data without captions, and for captions that were encoded beforehand."""


TEXT_ENCODERS: dict[str, Callable[..., TextEncoder | None]] = {
    "none": none,
    "embedding": embedding,
    "transformer": transformer,
}

__all__ = ["TEXT_ENCODERS", "NoText", "TextEncoder", "embedding", "none", "transformer", "with_text"]
