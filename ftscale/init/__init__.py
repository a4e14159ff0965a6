"""`ftscale init`: a commented run.yaml, translated from the configuration of another tool."""
