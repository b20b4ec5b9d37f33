"""From prepared data to what a network is given."""
