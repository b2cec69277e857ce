"""Pruners: the choice of the weights of a matrix that become zero (magnitude, Wanda, SparseGPT)."""
