"""Gates in other training programs: transformers' Trainer and those made from it."""
