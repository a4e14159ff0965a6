"""`ftscale` and `python -m ftscale`, which is also what `accelerate launch -m ftscale` runs."""

from ftscale.cli import main
from ftscale.processes import start_quickly


def run() -> None:
    """A command in a process of its own."""
    start_quickly()
    main()


if __name__ == "__main__":
    run()
