"""What a person sees of a run: figures, summary, model card."""
