"""Imports go down only; the heavy ones wait."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import labelspace

ROOT = Path(labelspace.__file__).parent
FOLDERS: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "base": {"errors"},
    "evaluation": {"errors"},
    "labels": {"errors", "types", "base", "evaluation"},
    "encoders": {"errors", "base"},
    "memory": {"errors", "types", "base", "evaluation", "labels"},
    "training": {"errors", "types", "base", "evaluation", "encoders", "memory"},
    "data": {"errors", "types", "base", "evaluation", "training"},
    "model": {"errors", "types", "base", "evaluation", "labels", "encoders", "memory", "training", "data"},
    "report": {"errors", "types", "evaluation", "labels", "training", "data", "model"},
    "recipes": {"errors", "types", "base", "evaluation", "encoders", "memory", "training", "data", "model"},
    "bench": {"errors", "base", "encoders", "memory", "training", "recipes"},
    "export": {"errors", "base", "encoders", "training", "model"},
    "sklearn": {"errors", "types", "base", "evaluation", "data", "model", "recipes"},
    "serving": {"errors", "types", "model"},
    "cli": {
        "errors", "types", "base", "evaluation", "labels", "memory", "training", "data", "model", "report", "recipes",
        "bench", "export", "serving",
    },
    "__main__": {"cli"},
}  # fmt: skip
"""Folders, and modules outside of folders, each with what it may import; only what stands above it in this list."""

PUBLIC = {
    "metrics": "evaluation.metrics", "calibrate": "evaluation.calibration", "losses": "training.losses",
    "config": "training.settings", "batch": "model.batch", "report_page": "report.page",
}  # fmt: skip
"""Modules that hold nothing but the public names of another; inside the package nobody imports them."""


def folder_of(module: str) -> str:
    return module.partition(".")[0]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts:
            found[".".join(parts)] = path
    return found


def imported(module: str, path: Path) -> set[str]:
    """Modules of the package that a module names in its imports, wherever they stand, type checking apart."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    known = modules()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                names.add(whole if whole in known else ".".join(base))
    return {name for name in names if name}


def test_folders_import_only_what_stands_above_them() -> None:
    order = list(FOLDERS)
    for folder, allowed in FOLDERS.items():
        assert all(order.index(name) < order.index(folder) for name in allowed), f"{folder} and its own list"
    seen: dict[str, set[str]] = {name: set() for name in FOLDERS}
    for module, path in modules().items():
        folder = folder_of(module)
        if module in PUBLIC:
            assert imported(module, path) == {PUBLIC[module]}
            continue
        for name in imported(module, path):
            assert name not in PUBLIC, f"{module} imports {name} instead of {PUBLIC[name]}"
            other = folder_of(name)
            assert other == folder or other in FOLDERS[folder], f"{module} ({folder}) imports {name} ({other})"
            seen[folder].add(other)
    unused = {folder: allowed - seen[folder] for folder, allowed in FOLDERS.items() if allowed - seen[folder]}
    assert not unused, "listed, but never imported"


def test_the_house_has_few_floors() -> None:
    floor: dict[str, int] = {}
    for folder, allowed in FOLDERS.items():
        floor[folder] = 1 + max((floor[name] for name in allowed), default=0)
    assert max(floor.values()) <= 13


def test_no_two_modules_import_each_other() -> None:
    found = {module: imported(module, path) & set(modules()) - {module} for module, path in modules().items()}
    while leaves := [module for module, names in found.items() if not names]:
        found = {module: names - set(leaves) for module, names in found.items() if module not in leaves}
    assert not found, "these import each other, directly or through others"


@pytest.mark.parametrize(
    "code",
    ["import labelspace", "import labelspace; labelspace.load, labelspace.evaluate, labelspace.Predictions"],
)
def test_light_imports_load_no_torch(code: str) -> None:
    script = f"{code}; import sys; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [[], ["train"], ["presets"]])
def test_help_loads_neither_torch_nor_numpy(command: list[str]) -> None:
    script = (
        f"import sys; from labelspace.cli import main; code = main([*{command!r}, '--help']); "
        "print([m for m in ('torch', 'numpy', 'scipy', 'transformers') if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[] 0")


def test_public_names_exist() -> None:
    for name in labelspace.__all__:
        assert getattr(labelspace, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        labelspace.nothing  # noqa: B018
