"""Where heads are in a model and how they are removed; copied into compact models, so torch and transformers only."""
