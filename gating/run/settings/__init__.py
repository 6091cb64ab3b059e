"""Settings of a run: composed by Hydra, validated, and recalled from the folder of a resumed run."""
