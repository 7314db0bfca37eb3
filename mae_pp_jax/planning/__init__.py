"""What a train step needs and how fast it may be on a slice of chips that is not at hand: compiled, never run."""
