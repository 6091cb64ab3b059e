"""Census of the model types of transformers: which lose heads and neurons exactly, which are refused, and why."""
