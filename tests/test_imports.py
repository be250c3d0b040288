"""The house's plan, kept by reading the imports: they point one way, and what needs no JAX or Hydra loads none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stability

PACKAGE = Path(stability.__file__).parent

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "untrusted": ("errors",),
    "arms": (),
    "formats": (),
    "cache": ("tracking.files",),
    "typed": ("errors",),
    "config": ("arms", "errors", "typed"),
    "data": ("cache", "errors", "typed", "tracking", "untrusted"),
    "model": ("errors", "config"),
    "training": ("errors", "config", "model", "data"),
    "tracking": ("errors", "untrusted"),
    "analysis": (
        "arms",
        "cache",
        "errors",
        "formats",
        "tracking.files",
        "tracking.locks",
        "tracking.names",
        "tracking.record",
        "tracking.wandb_key",
        "typed",
        "untrusted",
    ),
    "launching": (
        "analysis",
        "arms",
        "cache",
        "config",
        "data",
        "errors",
        "formats",
        "model",
        "tracking",
        "training",
        "typed",
        "untrusted",
    ),
    "replication": ("analysis", "errors", "formats", "launching", "tracking", "typed", "untrusted"),
}
"""What each part of the house may import of the others, beside itself. Entry points may import everything."""

ENTRY_POINTS = {
    "__init__",
    "run",
    "replicate",
    "alarms",
    "prepare",
    "analyze",
    "status",
    "workspace",
    "command_line",
    "config_guard",
    "_plugins",
}
MAY_IMPORT_HYDRA = {"run", "command_line", "config_guard", "_plugins"}
WITHOUT_JAX = {
    "errors",
    "untrusted",
    "config_guard",
    "arms",
    "cache",
    "formats",
    "typed",
    "data",
    "tracking",
    "analysis",
    "analyze",
    "alarms",
    "prepare",
    "status",
    "workspace",
    "command_line",
    "__init__",
}
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `stability`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Everything that a file imports, inside functions too, as dotted names; of ours, down to the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            deeper = {name for name in whole if name.removeprefix("stability.") in MODULES}
            found |= deeper if deeper == whole else {node.module} | deeper
    return found


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports, without the leading `stability.`; the bare package left out."""
    return {name.removeprefix("stability.") for name in imports(path) if name.startswith("stability.")}


def top(name: str) -> str:
    return name.split(".")[0]


def test_every_part_of_the_house_has_its_rule() -> None:
    assert {top(name) for name in MODULES} == MAY_IMPORT.keys() | ENTRY_POINTS


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) in MAY_IMPORT])
def test_imports_point_one_way(name: str) -> None:
    allowed = (top(name), *MAY_IMPORT[top(name)])
    strange = {
        one for one in ours(MODULES[name]) if not any(one == part or one.startswith(f"{part}.") for part in allowed)
    }
    assert not strange, f"stability.{name} may import of ours: {', '.join(allowed)}"


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) not in MAY_IMPORT_HYDRA])
def test_hydra_stays_at_the_door(name: str) -> None:
    assert not {"hydra", "omegaconf", "hydra_plugins"} & {top(one) for one in imports(MODULES[name])}


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) in WITHOUT_JAX])
def test_what_needs_no_jax_imports_none(name: str) -> None:
    assert not ACCELERATED & {top(one) for one in imports(MODULES[name])}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: {one for one in ours(path) if one in MODULES and one != name} for name, path in MODULES.items()}
    # Importing a package's own __init__ from inside it would be a circle too; that is why packages are nodes here.
    while leaves := {name for name, needed in graph.items() if not needed & graph.keys()}:
        graph = {name: needed for name, needed in graph.items() if name not in leaves}
    assert not graph


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(done.stdout.split())


def test_importing_stability_loads_next_to_nothing() -> None:
    assert not {"jax", "numpy", "polars", "pydantic", "hydra"} & loaded_by("import stability")


def test_preparing_loads_no_jax_and_its_libraries_only_where_they_are_used() -> None:
    loaded = loaded_by("import stability.prepare, stability.data, stability.data.preparation.preparing")
    assert "numpy" in loaded
    libraries = {"datasets", "fsspec", "pyarrow", "sentencepiece", "tokenizers"}
    assert not (ACCELERATED | libraries | {"hydra", "wandb"}) & loaded


def test_analysing_and_watching_load_no_jax_and_no_hydra() -> None:
    statement = "import stability, stability.analyze, stability.status, stability.tracking.wandb; stability.load"
    loaded = loaded_by(statement)
    assert "polars" in loaded
    assert not (ACCELERATED | {"hydra", "wandb"}) & loaded
