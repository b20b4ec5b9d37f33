"""What a network costs, whatever it has learned: parameters, multiply-accumulates, time."""
