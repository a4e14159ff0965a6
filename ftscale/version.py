"""The version of this code, which the build, run.json, prepared data and `ftscale --version` take from here."""

__version__ = "0.1.0"
