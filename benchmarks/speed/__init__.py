"""What gates cost while training and what removal brings afterwards, as ratios measured side by side."""
