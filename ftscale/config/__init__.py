"""The configuration: one frozen tree, read from YAML and the command line, checked as a whole."""

from ftscale.config.load import load_config, parse_config, write_config
from ftscale.config.schema import Config

__all__ = ["Config", "load_config", "parse_config", "write_config"]
