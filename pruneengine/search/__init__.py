"""Searches over plans: propose, score, allocate, plan, mask, evaluate, tell."""
