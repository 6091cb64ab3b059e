"""How a run is shown: page, figures, tables, summary, model card."""
