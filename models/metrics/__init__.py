"""Agreement, calibration, selective prediction, intervals and comparisons."""
