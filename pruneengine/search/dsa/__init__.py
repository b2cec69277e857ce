"""The search for an allocation function, by evolution: after DSA (Li, Dong et al., NeurIPS 2024)."""
