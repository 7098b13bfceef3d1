"""What holds for the repository as a whole: who imports whom, the tree in the documents, the recipes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli import app
from flows.config import RECIPES, load_recipe

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipelines", "nmt", "flows")  # each imports only itself and those before it
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
UNDRAWN = {"__init__.py", "py.typed"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".html", ".cfg", ".ini", ".json", ".sh", ""}
NOT_OURS = {"runs", "build", "dist", "seqloom.egg-info", "__pycache__"}


def name_of(module: Path) -> str:
    return str(module.relative_to(ROOT))


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of what a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)


def outside_functions(tree: ast.Module) -> ast.Module:
    """The module without the bodies of its functions."""

    class Emptied(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    emptied: ast.Module = Emptied().visit(ast.parse(ast.unparse(tree)))
    return emptied


def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def roots(names: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_one_way(module: Path) -> None:
    package = module.relative_to(ROOT).parts[0]
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    assert not roots(imported(parsed(module))) & set(later)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_says_what_it_is(module: Path) -> None:
    assert ast.get_docstring(parsed(module))


def test_no_module_is_a_place_for_anything() -> None:
    names = {module.stem for module in MODULES} | {module.parent.name for module in MODULES}
    assert not {name for name in names if re.search(r"util|helper|common|misc", name)}


def test_only_the_tokenizer_module_imports_sentencepiece() -> None:
    importers = [name_of(module) for module in MODULES if "sentencepiece" in roots(imported(parsed(module)))]
    assert importers == ["pipelines/tokenizer.py"]


def test_only_flows_imports_prefect() -> None:
    importers = {
        module.relative_to(ROOT).parts[0] for module in MODULES if "prefect" in roots(imported(parsed(module)))
    }
    assert importers == {"flows"}


def test_nmt_imports_ray_only_inside_functions() -> None:
    modules = [module for module in MODULES if module.is_relative_to(ROOT / "nmt")]
    assert not [name_of(module) for module in modules if "ray" in roots(imported(outside_functions(parsed(module))))]


def test_the_shard_contract_needs_arrow_and_numpy_alone() -> None:
    foreign = roots(imported(parsed(ROOT / "pipelines" / "shards.py"))) - set(sys.stdlib_module_names)
    assert foreign == {"pyarrow", "numpy", "pipelines"}


def test_the_tree_in_the_document_is_the_real_tree() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    real = {
        str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts and path.name not in UNDRAWN
    }
    assert drawn_files() == real


def test_an_installation_has_every_file_of_the_packages() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(table["packages"]) == {".".join(module.relative_to(ROOT).parts[:-1]) for module in MODULES}
    named = {
        path for package, globs in table["package-data"].items() for one in globs for path in files_of(package, one)
    }
    files = {path for package in PACKAGES for path in files_of(package, "**/*") if path.suffix not in (".py", ".pyc")}
    assert named == files
    assert {path.parent.name for path in named} >= {"profiles", "recipes", "templates"}


def files_of(package: str, pattern: str) -> set[Path]:
    return {path for path in (ROOT / package).glob(pattern) if path.is_file()}


def drawn_files() -> set[str]:
    """The files of the first code block under `## The house`; each line holds a name and a comment."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = text.partition("## The house")[2].partition("```")[2].partition("```")[0]
    files, folders = set(), [""]
    for line in block.splitlines()[1:]:
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        assert line.strip() != name, f"{name} has no comment"
        folders[len(indent) // 2 + 1 :] = [folders[len(indent) // 2] + name]
        if not name.endswith("/"):
            files.add(folders[-1])
    return files


def recipes() -> list[Path]:
    return sorted(RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    names = re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8"))
    recipe = load_recipe(str(path), define=dict.fromkeys(names, "/data"))
    assert recipe.name == path.stem


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "readme.yaml"
    path.write_text(text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    assert load_recipe(str(path), define={"DATA": "/data"}).name == "news-en-de"


def test_there_are_recipes() -> None:
    assert "demo-en-de" in {path.stem for path in recipes()}


def test_the_documents_name_only_commands_that_exist() -> None:
    commands = {command.name for command in app.registered_commands} | {
        command.callback.__name__ for command in app.registered_commands if command.callback is not None
    }
    for document in ("README.md", "ARCHITECTURE.md", "Makefile"):
        text = (ROOT / document).read_text(encoding="utf-8")
        named = set(re.findall(r"\bseqloom ([a-z]+)\b", "".join(code_of(text))))
        assert named <= commands, document


def code_of(text: str) -> Iterator[str]:
    """The code blocks and code spans of a document in Markdown, and the recipe lines of a Makefile."""
    yield from re.findall(r"```.*?```", text, flags=re.DOTALL)
    yield from re.findall(r"`[^`\n]+`", text)
    yield from re.findall(r"^\t.*$", text, flags=re.MULTILINE)


def test_no_text_names_a_package_index_or_a_folder_of_somebodys_machine() -> None:
    foreign = re.compile(r"index-" + r"url|find-" + r"links|(?<![\w.$}])/(?:home|Users|root|work)/")
    for path in text_files():
        found = foreign.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{path}: {found}"


def text_files() -> Iterator[Path]:
    ours = [path for path in ROOT.iterdir() if not path.name.startswith(".") and path.name not in NOT_OURS]
    for top in [*ours, ROOT / ".ci", ROOT / ".gitignore"]:
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix in TEXT_SUFFIXES:
                yield path


def test_the_three_engines_can_be_imported_together() -> None:
    # Their releases pull in newer libraries that some of them cannot work with: the bounds in pyproject.toml hold them.
    text = "import prefect.server.api.server, ray.train.torch, apache_beam"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
