"""Sparse pruning: single weights become zero, and the matrices keep their shapes."""
