"""Calibration and evaluation text: documents -> token windows."""

from pruneengine.data.samples import Samples, as_samples
from pruneengine.data.windows import evaluation_windows, load_samples

__all__ = ["Samples", "as_samples", "evaluation_windows", "load_samples"]
