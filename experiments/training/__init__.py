"""What decides the weights besides the data: losses, optimizers, schedules, the loop."""
