"""Metrics as `evaluate.Metric` classes over well-kept libraries, made in memory and without the hub."""
