"""No room grows too large to be understood: modules, classes, functions, and what is handed to them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import labelspace

ROOT = Path(labelspace.__file__).parent
MODULE, CLASS, FUNCTION, PARAMETERS = 700, 450, 90, 8
"""Lines, docstrings of functions aside, and parameters, at most."""
LONG = {"serving/annif.py:annif_routes": "one short function a route, which share what is around them"}
PUBLIC_FACE = {
    "cli/": "a parameter is a flag",
    "data/loading.py:load": "public",
    "evaluation/evaluating.py:report": "as `evaluate`, which is public",
    "evaluation/comparing.py:compare": "public",
    "evaluation/comparing.py:intervals": "as `compare`",
    "model/model.py:": "public",
    "sklearn.py:__init__": "scikit-learn wants every parameter in the constructor",
}
WIDE = {
    "encoders/__init__.py:make_encoder": "settings of an encoder, by name",
    "encoders/__init__.py:open_encoder": "settings of an encoder, by name",
    "encoders/static.py:build_static": "settings of an encoder, by name",
    "evaluation/evaluating.py:evaluate": "public: predictions, truth, and how they are counted",
    "evaluation/evaluating.py:_evaluated": "as `evaluate`",
    "memory/tune.py:tune": "what is measured on, and what may be tried",
    "memory/tune.py:best_shares": "what is measured on, and what may be tried",
    "training/loop.py:fit": "the loop is handed all that it turns; `recipes.run` is the only one that calls it",
    "training/loop.py:__init__": "as `fit`",
    "recipes/raexmc.py:contrast": "as `linear_loss`",
    "training/losses_fused.py:linear_loss": "public: vectors, pairs, and how they are counted",
    "training/losses_fused.py:linear_loss_plain": "as `linear_loss`",
    "training/losses_fused.py:forward": "of an autograd function, which takes positional tensors",
}
"""What is wider than that, and why."""


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", node


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    first = node.body[0]
    told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.end_lineno is not None
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if told else 0)  # type: ignore[operator]


def test_modules_and_classes_are_read_in_one_sitting() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= MODULE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None and node.end_lineno - node.lineno < CLASS, f"{path}: {node.name}"


def test_functions_fit_on_a_page() -> None:
    long = {name for name, node in functions() if lines(node) > FUNCTION}
    assert long == set(LONG)


def test_few_things_are_handed_to_a_function() -> None:
    wide = set()
    for name, node in functions():
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
        if len(given) - own > PARAMETERS and not name.startswith(tuple(PUBLIC_FACE)):
            wide.add(name)
    assert wide == set(WIDE)
