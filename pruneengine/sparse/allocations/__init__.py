"""Allocations of a sparsity over the matrices of a model: by name, by function, or from a file."""
