"""Budgets that are met exactly: with hard-concrete gates, and without noise for frozen weights."""
