"""Evolutionary search for an allocation function, after DSA (Li, Dong et al., NeurIPS 2024)."""
