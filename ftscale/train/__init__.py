"""The training loop, and the four moments in it: log, evaluate, save, stop."""
