"""Compiles DeepSpeed's operators that runs on a CPU load, before the tests: python tests/operators.py [NAME ...]

Left alone, the first test under ZeRO would wait a minute for them, and others with it.
"""

from __future__ import annotations

import os
import sys

OPERATORS = ("ShareMemCommBuilder", "CPUAdamBuilder")


def main(names: list[str]) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    for name in names or OPERATORS:
        get_accelerator().create_op_builder(name).load(verbose=False)


if __name__ == "__main__":
    main(sys.argv[1:])
