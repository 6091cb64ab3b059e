"""Memory and time of models that are cut over several processes: training, removal and loading."""
