"""The plan of the house, enforced: who may import whom, what is documented, what is too long."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "flowjax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Room -> the rooms it may import. The foundation (contract, arrays, choices, threefry) is open to all and imports no room.
FOUNDATION = {"contract", "arrays", "choices", "disk", "threefry"}
SIDE = {"data", "evaluation"}
FLOORS = {
    "paths": set(),
    "losses": {"paths"},
    "samplers": {"paths"},
    "models": {"paths", "losses", "samplers"},
    "control": set(),
    "data": {"paths", "samplers", "models", "shapes", "control"},
    "evaluation": {"paths", "samplers", "models", "data", "shapes"},
    "config": set(),
    "shapes": set(),
    "rewards": {"paths", "losses", "samplers", "models", "shapes"},
    "methods": {"paths", "losses", "samplers", "models", "rewards", "control", "config"},
    "training": {"paths", "losses", "samplers", "models", "methods", "config", *SIDE},
    "modes": {"training", "config", *SIDE},
    "sweep": {"paths", "modes", "main", "training", "config", *SIDE},
    "main": {"modes", "training", "config"},
}
OPTIONAL = {
    "torch",
    "tensorflow",
    "wandb",
    "matplotlib",
    "PIL",
    "sklearn",
    "rich",
    "tensorboardX",
    "submitit",
    "gymnasium",
    "clu",
    "scipy.stats",
}


def room(path: pathlib.Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_the_floors_below(path):
    own = room(path)
    allowed = FLOORS.get(own, set()) | FOUNDATION | {own}
    for name, node in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "flowjax" and len(parts) > 1 and own not in FOUNDATION and own != "__init__":
            assert parts[1] in allowed, f"{path.name}:{node.lineno} imports {name}: {own} may use {sorted(allowed)}"
        assert parts[0] != "configs"
        if own in FOUNDATION and parts[0] == "flowjax" and len(parts) > 1:
            assert parts[1] in FOUNDATION, f"{path.name}:{node.lineno}: the foundation imports no room"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_inside_functions(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in OPTIONAL and name not in OPTIONAL, (
                    f"{path.name}:{node.lineno} imports {name} at the top"
                )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_say_what_they_do_and_what_they_take(path):
    tree = ast.parse(path.read_text())
    if path.read_text().strip():
        assert ast.get_docstring(tree), f"{path} has no module docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno} class {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"
            bare = [a.arg for a in node.args.args + node.args.kwonlyargs if a.annotation is None and a.arg != "self"]
            assert not bare, f"{path.name}:{node.lineno} {node.name} takes {bare} without a type"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_outgrows_one_idea(path):
    assert len(path.read_text().splitlines()) <= 450


def test_the_trainer_holds_no_name_of_an_algorithm():
    names = ("flow_matching", "consistency", "dmd", "grpo", "reflow", "edm", "ddpm", "progressive")
    for path in (PACKAGE / "training").glob("*.py"):
        text = path.read_text().lower()
        found = [name for name in names if name in text]
        assert not found, f"{path.name} mentions {found}: algorithms belong to methods/"


RESTRICTED = PACKAGE / "models" / "torch_files.py"  # the one file with an unpickler, which admits tensors only


def test_nothing_unpickles():
    for path in FILES:
        for name, node in imports(ast.parse(path.read_text())):
            if path != RESTRICTED or name != "pickle":
                assert name.split(".")[0] not in ("pickle", "cloudpickle", "dill", "joblib"), (
                    f"{path.name}:{node.lineno}"
                )
        assert "allow_pickle=True" not in path.read_text()


def test_the_one_unpickler_decides_itself_what_a_name_means():
    tree = ast.parse(RESTRICTED.read_text())
    used = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"]
    assert set(used) == {"Unpickler"}
    (reader,) = (
        n for n in tree.body if isinstance(n, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, n.bases)
    )
    assert {"find_class", "persistent_load"} <= {n.name for n in reader.body if isinstance(n, ast.FunctionDef)}
    made = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "pickle.Unpickler"]
    assert not made and "super().find_class" not in RESTRICTED.read_text()
