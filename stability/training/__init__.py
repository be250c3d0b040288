"""Training: loss, schedule, optimizer, observations, the pure step, lanes, the loop and checkpoints."""
