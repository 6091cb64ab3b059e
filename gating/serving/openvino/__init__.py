"""Models for OpenVINO: decoders with their cache as state, and one forward pass of others."""
