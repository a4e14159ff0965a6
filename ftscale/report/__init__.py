"""The picture of a run: one HTML file that needs no network, made of what the run wrote into its folder."""
