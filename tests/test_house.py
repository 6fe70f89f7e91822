"""The house in order: notebooks are the source, the modules and the README follow, arrows point backwards, nothing unsafe or private."""
import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from readme import readme
from test_notebooks import execute, project_copy

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "viewpoint_rosetta"
LINE, ADAPTERS = (sorted((ROOT / "nbs").glob(f"{folder}[0-9][0-9]_*.ipynb")) for folder in ("", "datasets/"))
FIRST = sum(p.name < "03" for p in LINE)  # the adapters come after the clip table and the video, before the encoders
NOTEBOOKS = [*LINE[:FIRST], *ADAPTERS, *LINE[FIRST:]]
PAGES = [p for p in sorted((ROOT / "nbs").rglob("[!.]*.ipynb")) if p not in NOTEBOOKS and ".ipynb_checkpoints" not in p.parts]  # they export nothing
MODULES = sorted(p for p in LIBRARY.rglob("*.py") if not p.name.startswith("_"))
NOTEBOOK_KB = 600
WIDTH = 140  # aim at 120


def cells(path: Path) -> list:
    "The cells of a notebook as (type, source)."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(c["cell_type"], "".join(c["source"])) for c in found]


def by_name(paths):
    return {"argvalues": paths, "ids": [p.stem for p in paths]}


# ---- the notebooks are the source

@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A copy of the project in which the notebooks were exported and cleaned anew."
    top = tmp_path_factory.mktemp("export")
    shutil.copytree(ROOT / "nbs", top / "nbs", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "settings.ini", top)
    (top / LIBRARY.name).mkdir()
    shutil.copy(LIBRARY / "__init__.py", top / LIBRARY.name)
    code = "from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export; nbdev_export(); nbdev_clean()"
    done = subprocess.run([sys.executable, "-c", code], cwd=top, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    return top


def test_modules_are_what_the_notebooks_say(exported):
    def texts(folder):
        return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*.py")}
    here, fresh = texts(LIBRARY), texts(exported / LIBRARY.name)
    stale = sorted(name for name in here.keys() | fresh.keys() if here.get(name) != fresh.get(name))
    assert not stale, f"differ from what the notebooks export: {stale}; run `make export` (and never edit a module by hand)"


@pytest.mark.parametrize("path", **by_name([*NOTEBOOKS, *PAGES]))
def test_notebook_is_clean(path, exported):
    assert path.read_bytes() == (exported / path.relative_to(ROOT)).read_bytes(), f"{path.name}: run `make clean-notebooks`"
    text = path.read_text(encoding="utf-8")
    assert "application/vnd.jupyter.widget" not in text and '"widgets"' not in text, f"{path.name}: has saved widget state: run `make clean-notebooks`"
    assert len(text) <= NOTEBOOK_KB * 1024, f"{path.name}: {len(text) // 1024} KB, more than {NOTEBOOK_KB}: smaller pictures, fewer outputs"


@pytest.mark.parametrize("path", **by_name([*NOTEBOOKS, *PAGES]))
def test_notebook_opens_with_its_idea_and_runs_whole(path):
    found = cells(path)
    kind, opening = found[0]
    assert kind == "markdown" and re.match(r"# \S.*\n+> \S", opening), f"{path.name}: opens with '# the idea' and '> one line'"
    unrun = [source for kind, source in found if kind == "code" and re.search(r"^#\|\s*eval:\s*false", source, re.M)]
    assert not unrun, f"{path.name}: a cell that is never run is a cell that is broken:\n{unrun[0]}"


@pytest.mark.parametrize("path", **by_name(NOTEBOOKS))
def test_exported_cells_fit_the_page(path):
    exported = [source for kind, source in cells(path) if kind == "code" and re.search(r"^#\|\s*export", source, re.M)]
    wide = [line for source in exported for line in source.splitlines() if len(line) > WIDTH]
    assert not wide, f"{path.name}: lines over {WIDTH} characters:\n" + "\n".join(wide)


def test_site_lists_every_notebook():
    "The sidebar names all pages once, those of the library in the order of the notebooks."
    listed = re.findall(r"^\s*- (\S+\.ipynb)$", (ROOT / "_quarto.yml").read_text(encoding="utf-8"), re.M)
    library, pages = ([p.relative_to(ROOT / "nbs").as_posix() for p in paths] for paths in (NOTEBOOKS, PAGES))
    assert [name for name in listed if name in library] == library
    assert sorted(listed) == sorted([*library, *pages])


# ---- the README is the index

def test_readme_is_the_index(tmp_path):
    nbs = project_copy(tmp_path / "project")
    made = readme(execute(nbs / "index.ipynb", tmp_path))
    assert made == (ROOT / "README.md").read_text(encoding="utf-8"), "README.md is not what nbs/index.ipynb makes: run `make readme`"


def test_index_keeps_its_outputs():
    index = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    assert readme(index) == (ROOT / "README.md").read_text(encoding="utf-8"), "nbs/index.ipynb shows other outputs than the README: run `make readme`"


def test_readme_opens_with_the_two_commands():
    opening = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0].splitlines()[:25]
    assert sum(line.startswith(("make demo", "make test")) for line in opening) == 2


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    broken = [x for x in links if "://" not in x and not (ROOT / x).exists()]
    assert links and not broken


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w.-]+", d)[0] for d in project["dependencies"]]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [n for n in names if f"`{n}`" not in text], "say in nbs/index.ipynb why each dependency is there"


def test_every_import_is_declared():
    "What a module imports must not be there by the luck of another package."
    from importlib.metadata import packages_distributions
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    plain = lambda name: re.sub("[-_.]+", "-", name.lower())
    extras = [d for group in project["optional-dependencies"].values() for d in group]
    declared = {plain(re.match(r"[\w.-]+", d)[0]) for d in [*project["dependencies"], *extras]}
    owners, lacking = packages_distributions(), set()
    for path in MODULES:
        for name in imports(ast.parse(path.read_text(encoding="utf-8")), ".".join(path.relative_to(ROOT).with_suffix("").parts)):
            top = name.split(".")[0]
            if top and top not in sys.stdlib_module_names and top != LIBRARY.name and not declared & {plain(o) for o in owners.get(top, [top])}:
                lacking.add(f"{path.name}: {top}")
    assert not lacking, f"add to pyproject.toml, with a reason in nbs/index.ipynb: {sorted(lacking)}"


def test_versions_agree():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    init = re.search(r'__version__ = "(.+)"', (LIBRARY / "__init__.py").read_text(encoding="utf-8"))[1]
    assert project["version"] == settings["DEFAULT"]["version"] == init
    assert f"## {init}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ---- the arrows

def imports(tree: ast.AST, module: str):
    "Every module that is imported, with its full name; `from . import clips` gives viewpoint_rosetta.clips."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[:-node.level]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def positions() -> dict:
    "Module name to the position of its notebook along the data's way."
    found = {}
    for place, path in enumerate(NOTEBOOKS):
        for kind, source in cells(path):
            if kind == "code" and (name := re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M)):
                found[f"{LIBRARY.name}.{name[1]}"] = place
    return found


def pointing_forward(tree: ast.AST, module: str, places: dict) -> list:
    "The imports of later notebooks' modules, or of its own: none is allowed, so there can be no cycle."
    return [name for name in imports(tree, module) if name in places and places[name] >= places[module]]


def test_every_module_has_a_notebook():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES}
    assert names == set(positions())


@pytest.mark.parametrize("path", **by_name(MODULES))
def test_arrows_point_backwards(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    forward = pointing_forward(ast.parse(path.read_text(encoding="utf-8")), module, positions())
    assert not forward, f"{path.name} imports from a later notebook: {forward}"


def test_a_forward_arrow_is_seen():
    places = {"viewpoint_rosetta.clips": 0, "viewpoint_rosetta.video": 1}
    for source in ("from .video import read_frames", "from . import video", "import viewpoint_rosetta.video as v", "def f():\n    from viewpoint_rosetta import video"):
        assert pointing_forward(ast.parse(source), "viewpoint_rosetta.clips", places), source
    assert not pointing_forward(ast.parse("from .clips import pool"), "viewpoint_rosetta.video", places)


# ---- what exported code may not hold

def unsafe(tree: ast.AST) -> list:
    "What may run foreign code, hide where a name comes from, or bring the notebooks' tools to users."
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"line {line}: imports {n}" for n in names
                      if n.split(".")[0] in {"nbdev", "fastcore", "execnb", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}]
            found += [f"line {line}: star import" for a in node.names if a.name == "*"]
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in {"eval", "exec", "compile", "__import__", "os.system"}:
                found.append(f"line {line}: {name}")
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append(f"line {line}: torch.load without weights_only=True")
            if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False" or given.get("shell", "False") != "False":
                found.append(f"line {line}: {name} with {given}")
    return found


@pytest.mark.parametrize("path", **by_name(MODULES))
def test_module_is_safe_and_documented(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not unsafe(tree)
    assert ast.get_docstring(tree), f"{path.name}: no docstring; its notebook opens without '> one line'"
    silent = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"
              and not ast.get_docstring(n) and "#" not in ast.get_source_segment(text, n)]
    assert not silent, f"{path.name}: public, with neither a docstring nor a comment on a parameter: {silent}"


@pytest.mark.parametrize("source", ["import pickle", "from fastcore.all import L", "from os.path import *", "eval('1')", "torch.load('x')",
                                    "torch.load('x', weights_only=False)", "np.load('x', allow_pickle=True)", "subprocess.run('ls', shell=True)"])
def test_unsafe_code_is_seen(source):
    assert unsafe(ast.parse(source))


def test_safe_code_is_let_through():
    assert not unsafe(ast.parse("import torch\nmodel.eval()\ntorch.load('x', weights_only=True)\nre.compile('x')"))


# ---- nothing of one machine

PRIVATE = re.compile("|".join([r"(?<![\w.~}/-])/(?:" + "work|root|tmp|home/\\w+" + r")(?:/|\b)", "pypi" + r"\.org", "python" + r"hosted\.org", "index" + "-url"]))


def tracked() -> list[Path]:
    "Files that are or would be committed."
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def private(path: Path) -> list:
    "Machine paths and package registries that a text file names."
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    return [m[0] for m in PRIVATE.finditer(text)]


def test_no_machine_paths_or_registry_hosts():
    found = {str(p.relative_to(ROOT)): names for p in tracked() if p.name != "uv.lock" and (names := private(p))}
    assert not found


def test_a_machine_path_is_seen(tmp_path):
    for place in ("work/main", "root/.cache", "tmp/x", "home/someone/x"):
        (tmp_path / "x.md").write_text(f"open '/{place}'")
        assert private(tmp_path / "x.md"), place
    (tmp_path / "x.md").write_text("the folder runs/tmp/x, ../work/x and https://example.org/home/x")
    assert not private(tmp_path / "x.md")


def test_no_big_files():
    "The shipped world is one folder of its own, at most 25 MB; anything else is text, or small."
    sizes = {p.relative_to(ROOT): p.stat().st_size for p in tracked()}
    world = sum(size for p, size in sizes.items() if "assets/world" in p.as_posix())
    big = [f"{p} ({size >> 20} MB)" for p, size in sizes.items() if size > 2 << 20 and "assets/world" not in p.as_posix()]
    assert world <= 25 << 20 and not big


# ---- the way in

@pytest.mark.parametrize("fit, wished, found", [(["python3"], "python3", "python3"), (["python3.12", "python3.11"], "python3", "python3.12"),
                                               (["python3.11"], "python3.13", "python3.11"), ([], "python3", None)])
def test_the_first_python_that_will_do(tmp_path, fit, wished, found):
    "Stand-ins that say whether they are of a version that will do: `python3` may be too new or too old, another beside it is taken."
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {int(name not in fit)}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["bash", ROOT / "scripts" / "bootstrap", "python"], capture_output=True, text=True,
                          env=dict(PATH=f"{tmp_path}:/usr/bin:/bin", PYTHON=wished))
    assert (done.stdout.strip() or None, done.returncode) == (found, int(found is None))
    assert found or "Python 3.11 or 3.12 is needed" in done.stderr


# ---- the site

def test_site_has_no_broken_links():
    done = subprocess.run([sys.executable, "scripts/docs_check.py"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
