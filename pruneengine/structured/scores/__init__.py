"""Importance scores: statistics and weights -> one score per unit."""
