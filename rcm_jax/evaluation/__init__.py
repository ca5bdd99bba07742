"""Predictions of finished runs, scores, intervals over patients, calibration."""
