"""Calibration: text through the model, once -> Statistics."""
