"""How a run goes: from its configuration to its folder."""
