"""AdaPruner: Bayesian search over calibration data, metric and allocation of a structured prune."""
