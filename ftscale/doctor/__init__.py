"""`ftscale doctor`: what this machine and its Python have for training, and what to do about what they lack."""
