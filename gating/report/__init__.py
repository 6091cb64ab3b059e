"""How a run is shown: figures, tables, summary, model card."""
