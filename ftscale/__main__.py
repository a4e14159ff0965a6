"""`python -m ftscale`, which is also what `accelerate launch -m ftscale` runs."""

from ftscale.cli import main

if __name__ == "__main__":
    main()
