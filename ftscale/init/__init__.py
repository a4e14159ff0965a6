"""`ftscale init`: a commented run.yaml, for a file of rows or from the configuration of another tool."""
