"""What is done with a configuration, in reading order: train, evaluate, predict, export."""
