"""Memory, time and cost of a run before it starts."""

from ftscale.plan.forecast import Choice, Plan, plan_run

__all__ = ["Choice", "Plan", "plan_run"]
