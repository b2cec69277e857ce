"""The search for a plan: its spaces of metrics and allocations."""
