"""`ftscale` and `python -m ftscale`, which is also what `accelerate launch -m ftscale` runs."""

from ftscale.base.startup import start_quickly
from ftscale.cli import main


def run() -> None:
    """A command in a process of its own."""
    start_quickly()
    main()


if __name__ == "__main__":
    run()
