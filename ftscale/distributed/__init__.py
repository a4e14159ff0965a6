"""Processes, strategies and devices: the only folder that knows DeepSpeed."""
