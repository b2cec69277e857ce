"""Allocation functions: from the scores of a decoder layer to how much of it goes, after DSA (NeurIPS 2024)."""
