"""Evaluation: perplexity, zero-shot accuracy, speed and size of a model, and results that can be compared."""
