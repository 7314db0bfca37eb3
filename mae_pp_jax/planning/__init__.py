"""What a train step needs and how fast it may be on a TPU slice that is not at hand: compiled, never run."""
