"""Prints what pyproject.toml asks for with the given extras, a line each: python launch/requirements.py demo,dev.

pip checks the hashes of launch/constraints.txt for named packages alone, not for a folder, which has none.
"""

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

about = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
project, left = about["project"], sys.argv[1].split(",")
lines = about["build-system"]["requires"] + project["dependencies"]
while left:
    for line in project["optional-dependencies"][left.pop()]:
        if line.startswith("ftscale["):
            left += line.removeprefix("ftscale[").removesuffix("]").split(",")
        else:
            lines.append(line)
print("\n".join(lines))
