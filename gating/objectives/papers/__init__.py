"""Objectives of papers: a price on open gates, a Lagrangian, and differentiable subsets."""
