"""Finding and removing attention heads; needs torch and transformers only, and travels inside compact models."""
