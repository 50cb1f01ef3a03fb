"""The house keeps its shape: imports run downwards, doors are labelled, the wheel is clean."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedef.config import Config
from fedef.service import Service

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedef", "clients", "strategies", "sims")
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
each_source = pytest.mark.parametrize("path", SOURCES)

FORBIDDEN = {
    "fedef": {"flwr", "ray", "clients", "strategies", "sims"},
    "clients": {"strategies", "sims"},
    "strategies": {"clients", "sims"},
    "sims": set(),
}
PURE = ("client_session", "server_session", "judge", "rounds", "messages", "methods", "codec")
OUTSIDE_WORLD = {
    *("asyncio", "builtins", "fcntl", "glob", "http", "io", "mmap", "multiprocessing", "os"),
    *("pathlib", "random", "select", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile"),
    *("threading", "time", "urllib"),
}


def imported(source):
    """Full names of all modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(source):
    return {name.partition(".")[0] for name in imported(source)}


def may_import_torch(path):
    """Whether a file wraps torch models or optimizers, or measures against torch."""
    folder, _, name = path.rpartition("/")
    starts = {"fedef/problems": "", "fedef": "torch_", "sims": "bench"}
    return folder in starts and name.startswith(starts[folder])


def undocumented(source):
    """Names of the public module, classes and functions without a docstring."""

    def visit(node, name):
        if ast.get_docstring(node) is None:
            yield name
        inside = node.body if isinstance(node, ast.Module | ast.ClassDef) else ()
        for child in inside:
            named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if named and not child.name.startswith("_"):
                yield from visit(child, f"{name}.{child.name}")

    return list(visit(ast.parse(source), "module"))


def global_draws(source):
    """Uses of `np.random` other than making a generator from a given seed."""
    nodes = list(ast.walk(ast.parse(source)))
    uses = [ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute | ast.ImportFrom)]
    draws = {use for use in uses if re.match(r"(np|numpy)\.random\.\w+$|from numpy.random", use)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    unseeded = {ast.unparse(call.func) for call in calls if not call.args + call.keywords}
    makers = {f"np.random.{name}" for name in ("Generator", "Philox", "RandomState", "default_rng")}
    return {use for use in draws if use not in makers or use in unseeded}


def test_the_four_packages_are_there():
    assert len(SOURCES) > 30
    assert {path.partition("/")[0] for path in SOURCES} == set(PACKAGES)
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


@each_source
def test_imports_run_downwards(path):
    package = path.partition("/")[0]
    assert not top_level(SOURCES[path]) & FORBIDDEN[package]
    assert "tests" not in top_level(SOURCES[path])


@each_source
def test_torch_is_imported_only_where_torch_models_are_wrapped(path):
    assert "torch" not in top_level(SOURCES[path]) or may_import_torch(path)


@pytest.mark.parametrize("name", PURE)
def test_the_protocol_touches_no_network_clock_or_disk(name):
    source = SOURCES[f"fedef/{name}.py"]
    assert not top_level(source) & OUTSIDE_WORLD
    called = {node.func.id for node in ast.walk(ast.parse(source)) if is_named_call(node)}
    assert not called & {"open", "print", "input", "eval", "exec", "__import__"}


def is_named_call(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_fedef_itself_loads_neither_flower_nor_ray_nor_torch():
    modules = ", ".join(f"fedef.{name}" for name in PURE)
    program = f"import sys, {modules}; print(sorted({{'flwr', 'ray', 'torch'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("[]\n", "")


ON_NO_DEVICE = (
    "ray",
    "matplotlib",
    "pandas",
    "pyarrow",
    "datasets",
    "flwr_datasets",
    "statsmodels",
)


def test_a_device_does_without_what_only_simulations_need():
    """Everything of the device and the server is imported where the heavy libraries are missing."""
    modules = [
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in SOURCES
        if path.partition("/")[0] in ("fedef", "clients", "strategies")
    ]
    program = f"""
import importlib, sys
for missing in {ON_NO_DEVICE}:
    sys.modules[missing] = None  # importing it raises ModuleNotFoundError
for module in {[*modules, "sims.cli", "sims.credentials"]}:
    importlib.import_module(module)
from fedef.errors import ConfigError
from fedef.experiment import Config, Experiment
try:
    Experiment.build(Config.from_flat({{}}))
except ConfigError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "needs datasets, not installed here" in run.stdout


def test_the_heavy_libraries_are_in_the_extra_for_simulations():
    table = project()["project"]
    names = {re.split(r"[\[=<>]", line)[0] for line in table["dependencies"]}
    heavy = {re.split(r"[\[=<>]", line)[0] for line in table["optional-dependencies"]["sims"]}
    on_no_device = {name.replace("_", "-") for name in ON_NO_DEVICE if name != "ray"}
    assert not names & on_no_device
    assert heavy >= on_no_device
    assert "flwr[simulation]==1.39.0" in table["optional-dependencies"]["sims"]  # brings Ray
    assert "cryptography>=46" in table["optional-dependencies"]["edge"]


@each_source
def test_everything_public_has_a_docstring(path):
    assert undocumented(SOURCES[path]) == []


@each_source
def test_no_global_random_generator_is_used(path):
    assert global_draws(SOURCES[path]) == set()
    assert "random" not in top_level(SOURCES[path])


def test_the_checks_see_an_offence():
    nested = "def f():\n    import torch.nn as nn\n    from flwr.app import Message\n"
    assert top_level(nested) == {"torch", "flwr"}
    assert set(imported("from a.b import c")) == {"a.b", "a.b.c"}
    assert not may_import_torch("fedef/methods.py")
    assert not may_import_torch("sims/engine.py")
    assert not may_import_torch("sims/more/bench.py")
    assert may_import_torch("sims/bench.py")
    assert may_import_torch("fedef/torch_optim.py")
    assert may_import_torch("fedef/problems/digits.py")
    assert global_draws("np.random.default_rng(3).random(np.random.Philox(key=1))") == set()
    assert global_draws("x = np.random.rand(3)") == {"np.random.rand"}
    assert global_draws("x = np.random.default_rng()") == {"np.random.default_rng"}
    assert global_draws("from numpy.random import rand") == {"from numpy.random import rand"}
    bare = "class A:\n    def f(self): ...\n    def _g(self): ...\nasync def h(): ...\n"
    assert undocumented(bare) == ["module", "module.A", "module.A.f", "module.h"]
    assert undocumented('"""M."""\ndef _private(): ...\n') == []


# --- packaging -----------------------------------------------------------------------------------


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_flower_app_has_every_key_with_its_default():
    run_config = project()["tool"]["flwr"]["app"]["config"]
    expected = {**Config.from_flat({}).to_flat(), **Service().to_flat()}
    assert run_config == expected
    # TOML tells 1 from 1.0, and Flower refuses an override of another type.
    assert {k: type(v) for k, v in run_config.items()} == {k: type(v) for k, v in expected.items()}


def test_the_wheel_holds_the_four_packages_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*command, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    metadata = {name for name in files if ".dist-info/" in name}
    assert {name.partition("/")[0] for name in files - metadata} == set(PACKAGES)
    assert {name for name in files - metadata if name.endswith(".py")} == set(SOURCES)
    rest = {name for name in files - metadata if not name.endswith(".py")}
    assert rest == {"sims/heterogeneity.toml", *(f"{package}/py.typed" for package in PACKAGES)}
    assert not [name for name in files if "test" in name]
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert any(name.endswith("entry_points.txt") for name in metadata)
