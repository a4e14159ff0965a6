"""`ftscale` and `python -m ftscale`, which is also what `accelerate launch -m ftscale` runs."""

import atexit
import gc

from ftscale.cli import main


def run() -> None:
    """A command in a process of its own."""
    # a quarter of what imports and Python's own end take goes into collecting garbage, of which there is none
    gc.disable()  # until `collect_garbage`
    atexit.register(gc.freeze)
    main()


if __name__ == "__main__":
    run()
