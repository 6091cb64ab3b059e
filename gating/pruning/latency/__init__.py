"""The latency of models: timed within a limit, and turned into the budget that reaches a speed-up."""
