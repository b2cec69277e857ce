"""Allocation functions of DSA (NeurIPS 2024): from the scores of a decoder layer to its sparsity."""
