"""Calibration: one pass of text through the model, which gives :class:`Statistics`."""
