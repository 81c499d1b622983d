"""Imports go down only; the heavy ones wait."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import labelspace

ROOT = Path(labelspace.__file__).parent
ROWS = [
    {"errors", "base"},
    {"types", "config", "base.files", "base.machine", "data.npz", "base.strings", "charts", "tracking"},
    {"losses", "metrics", "estimate", "calibrate", "base.rates", "data.formats.text"},
    {"data.formats.cells", "data.formats.corpus", "data.formats.parquet", "data.formats.sparse"}
    | {"data.tokens", "losses_fused", "optim", "clusters", "indexes.exact"},
    {
        "data.formats.filters",
        "data.formats.columns",
        "data.writers",
        "encoders.attention",
        "encoders.interface",
        "encoders.words",
        "indexes.faiss",
    },
    {"data.formats.lf", "data.formats.xc", "encoders.packed", "indexes", "evaluation"},
    {"data.formats.labels", "keys", "encoders.inference"},
    {"data.formats.table", "encoders.transformer", "linear"},
    {"data.formats.beir", "data.formats.features", "data.formats.vocabulary", "encoders.vectors"},
    {"data.formats.annif", "encoders.static"},
    {"data.formats"},
    {"data", "data.scores", "encoders", "memory"},
    {"data.conversion"},
    {"gradcache", "data.batches", "negatives", "checkpoint", "tuning"},
    {"heads", "pools", "trainer", "info", "quickstart"},
    {"towers"},
    {"manifest"},
    {"model"},
    {"joining"},
    {"report"},
    {"report_page"},
    {"recipes.preparation", "batch"},
    {"recipes.dexml", "recipes.raexmc"},
    {"recipes.companion"},
    {"recipes.unidec"},
    {"recipes.auto"},
    {"recipes", "bench"},
    {"sklearn", "export"},
    {"commands"},
    {"memory_commands"},
    {"serving", "serving.worker", "serving.schemas", "serving.labels"},
    {"serving.answers", "serving.http"},
    {"serving.service"},
    {"serving.annif", "serving.page"},
    {"serving.app"},
    {"serving.command"},
    {"cli"},
    {"__main__"},
]
ROW = {module: row for row, modules in enumerate(ROWS) for module in modules}


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
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                names.add(whole if whole in ROW else ".".join(base))
    return {name for name in names if name}


def test_every_module_has_a_row_and_every_row_a_module() -> None:
    assert set(modules()) == set(ROW)


@pytest.mark.parametrize("module", sorted(ROW))
def test_imports_go_down(module: str) -> None:
    for name in imported(module, modules()[module]):
        assert ROW[name] < ROW[module], f"{module} imports {name}"


@pytest.mark.parametrize(
    "code",
    ["import labelspace", "import labelspace; labelspace.load, labelspace.evaluate, labelspace.Predictions"],
)
def test_light_imports_load_no_torch(code: str) -> None:
    script = f"{code}; import sys; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; from labelspace.cli import main; code = main(['--help']); "
        "print([m for m in ('torch', 'numpy', 'scipy', 'transformers') if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[] 0")


def test_public_names_exist() -> None:
    for name in labelspace.__all__:
        assert getattr(labelspace, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        labelspace.nothing  # noqa: B018
