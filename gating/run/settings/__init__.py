"""What a command asks for: settings composed by Hydra, checked and recalled."""
