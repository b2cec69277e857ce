"""Structured pruning: heads, channels, experts and layers are removed, and the matrices shrink."""
