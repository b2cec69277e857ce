"""Longest window that a model can read, or was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.model.families import learned_positions
from pruneengine.model.finder import text_config


def check_positions(config: Any, windows: Mapping[str, int]) -> tuple[str, ...]:
    """Return warnings of windows longer than those that a model was trained on.

    Args:
        config: of a model of transformers; None has no limit.
        windows: tokens per window, by a name for the message.

    Raises:
        ValueError: a window longer than the model's learned positions, which it cannot read.
    """
    text = text_config(config)
    learned = learned_positions(getattr(text, "model_type", None))
    limit = getattr(text, learned or "max_position_embeddings", None)
    # Slopes of attention by distance have no limit, although the config may name one.
    if not isinstance(limit, int) or getattr(text, "alibi", False):
        return ()
    longer = {name: length for name, length in windows.items() if length > limit}
    if longer and learned:
        name, length = next(iter(longer.items()))
        raise InputError(
            f"{name} of {length} tokens: the model has {limit} positions ({learned}), choose at most these"
        )
    return tuple(
        f"{name} of {length} tokens: the model was trained on at most {limit} (max_position_embeddings), beyond which "
        "its loss may be far higher"
        for name, length in longer.items()
    )
