"""The cost of gates in training and the gain of removal, as ratios measured side by side."""
