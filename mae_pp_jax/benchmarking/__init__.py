"""How fast a stage trains on the machine at hand: its step, its input, and both together."""
