"""Optimizers and schedules, built from their sections of the configuration."""

from ftscale.optim.master_weights import MasterWeights
from ftscale.optim.optimizers import build_cpu_adam, build_optimizer
from ftscale.optim.schedules import advance_schedule, build_schedule

__all__ = ["MasterWeights", "advance_schedule", "build_cpu_adam", "build_optimizer", "build_schedule"]
