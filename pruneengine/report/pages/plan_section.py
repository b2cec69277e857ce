"""Section of the plan: asked and reached ratio, and the kept units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruneengine.report.figures.layers import plan_picture
from pruneengine.report.page import Figure, Section
from pruneengine.report.words import count, percent

KINDS = {
    "heads": "KV groups", "mlp": "MLP channels", "layers": "layers",
    "experts": "experts", "experts.mlp": "channels of experts",
}  # fmt: skip


def plan_section(values: Mapping[str, Any]) -> Section:
    """Return asked and reached ratio in words, and a picture of the kept units where the values hold the plan."""
    text = _target(values)
    plan = values.get("plan")
    if not plan:
        return Section("The plan", (text,))
    heads = next(iter(plan.values()))
    removed = [layer for layer, kept in enumerate(heads["kept"]) if kept == 0]
    caption = "Units of every layer: filled ones stay, pale ones go."
    if removed:
        caption += f" A cross marks a layer that goes as a whole: {', '.join(map(str, removed))}."
    alt = "; ".join(f"{KINDS.get(kind, kind)} kept per layer: {_span(rows['kept'])}" for kind, rows in plan.items())
    picture = plan_picture({KINDS.get(kind, kind): rows for kind, rows in plan.items()})
    return Section("The plan", (text,), figures=(Figure(picture, caption, alt, wide=True),))


def _target(values: Mapping[str, Any]) -> str:
    """Return asked and reached ratio in words."""
    asked, reached = values["ratio asked"], values["ratio reached"]
    dense, pruned = values["parameters"]["dense"], values["parameters"]["pruned"]
    kinds = " and ".join(KINDS.get(kind, kind) for kind in values.get("kinds", ()))
    what = f"of the parameters in {kinds}" if kinds else "of the prunable parameters"
    whole = f"{count(dense - pruned)} parameters or {percent(1 - pruned / dense, 1)} of the whole model"
    config = (values.get("recipe") or {}).get("config", {})
    if config.get("protocol") == "llm-pruner":
        layers = "every layer"
        if config.get("layers"):
            layers = f"each of the layers {config['layers'][0]} to {config['layers'][1] - 1}"
        return f"Asked to remove {percent(asked)} inside {layers}; that is {percent(reached)} {what}, {whole}."
    text = f"Asked to remove {percent(asked)} {what}; the plan removes {percent(reached)}, {whole}."
    if abs(asked - reached) > 0.005:
        text += " These are the nearest legal widths: whole heads and layers, rounded multiples of channels."
    return text


def _span(kept: list[int]) -> str:
    """Return least and most of the kept units as text."""
    low, high = min(kept, default=0), max(kept, default=0)
    return str(low) if low == high else f"{low} to {high}"
