"""Imports go down the layers only, and the light parts stay light."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ftscale"

LAYERS = (  # a member imports from earlier rows only; a folder is one member
    ("base", "version"),
    ("config",),
    ("distributed", "data", "models", "optim", "metrics"),
    ("modalities",),
    ("tasks",),
    ("methods",),
    ("train",),
    ("precheck", "report"),
    ("run",),
    ("checks",),
    ("plan",),
    ("cluster", "demo", "doctor", "init"),
    ("cli",),
    ("__init__", "__main__"),
)
ROW = {member: row for row, members in enumerate(LAYERS) for member in members}


def test_every_module_stands_in_a_layer():
    members = {path.stem for path in PACKAGE.glob("*.py")}
    members |= {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert members == set(ROW)


def test_imports_go_down_and_never_to_a_sibling():
    upward = [
        f"{path.relative_to(ROOT)}:{line}: {member} imports {imported}"
        for path, member in _modules()
        for imported, line in _imported_members(path)
        if imported != member and ROW[imported] >= ROW[member]
    ]
    assert upward == []


def test_the_training_loop_knows_no_task_and_no_method():
    known = {"ftscale.tasks.base", "ftscale.tasks.batch", "ftscale.methods.base"}
    named = {
        (path.name, module)
        for path in (PACKAGE / "train").glob("*.py")
        for module, _ in _imported_modules(path)
        if module.startswith(("ftscale.tasks", "ftscale.methods")) and module not in known
    }
    assert named == set()


def test_only_distributed_names_deepspeed_or_fsdp():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path, _ in _modules()
        for name in _identifiers(path)
        if "deepspeed" in name.lower() or "fsdp" in name.lower()
    }
    outside = {(file, name) for file, name in found if not file.startswith("distributed/")}
    # DeepSpeed's CPU Adam is an optimizer like the others, made where they are made
    assert outside == {("optim/optimizers.py", "deepspeed.ops.adam"), ("optim/optimizers.py", "DeepSpeedCPUAdam")}


def test_the_function_train_does_not_hide_the_package_of_that_name():
    import ftscale
    import ftscale.train.loop as loop

    assert ftscale.train.loop is loop
    assert callable(ftscale.train)
    assert list(inspect.signature(ftscale.train).parameters) == ["config", "resume", "overwrite"]


@pytest.mark.parametrize(
    "program",
    [
        "import ftscale",
        "import ftscale.base.errors",
        "import ftscale.base.resources",
        "from ftscale.config import load_config",
        "from ftscale.config.load import config_schema; config_schema()",
        "import sys; sys.argv = ['ftscale', '--help']\nfrom ftscale.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code",
        "import sys; sys.argv = ['ftscale', 'train', '--help']\nfrom ftscale.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code",
    ],
)
def test_torch_is_not_imported_by(program: str):
    program += "\nimport sys\nheavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    program += "\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _modules() -> Iterator[tuple[Path, str]]:
    """Each file of the package, and the member it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_members(path: Path) -> Iterator[tuple[str, int]]:
    for module, line in _imported_modules(path):
        parts = module.split(".")
        if parts[0] == "ftscale":
            yield parts[1] if len(parts) > 1 and parts[1] in ROW else "__init__", line


def _imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted modules of each import, inside functions too; `from ftscale import run` is ftscale.run.train."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(path, node)
            if node.level or module == "ftscale":  # the names may be modules
                yield from ((f"{module}.{name.name}", node.lineno) for name in node.names)
            else:
                yield module, node.lineno


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _identifiers(path: Path) -> Iterator[str]:
    """Names in code: not in comments, docstrings or other texts."""
    yield from (module for module, _ in _imported_modules(path))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
