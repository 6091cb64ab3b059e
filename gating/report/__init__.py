"""The report of a run: page, figures, tables, summary, model card."""
