"""Pruners: which weights of a matrix become zero (magnitude, Wanda, SparseGPT)."""
