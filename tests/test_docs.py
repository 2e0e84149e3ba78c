"""The documentation says what the code does: generated pages are current, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pathup.cli.main import VERBS, load_verb

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = ROOT / "README.md"


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _commands(page: Path) -> list[list[str]]:
    """Every command line of a page's sh blocks, as words, without a launcher before it."""
    lines = [line for block in _blocks(page, "sh") for line in block.splitlines() if line.strip()]
    found = []
    for line in lines:
        words = shlex.split(line)
        if words[:2] == ["accelerate", "launch"] or words[0] == "torchrun":
            words = ["python", *words[words.index("-m") :]]
        found.append(["pathup", *words[3:]] if words[:3] == ["python", "-m", "pathup"] else words)
    return found


def _every_command() -> list[tuple[str, Any]]:
    found = []
    for verb in VERBS:
        loaded = load_verb(verb)
        nested = getattr(loaded, "commands", {})
        found += [(f"{verb} {name}", command) for name, command in nested.items()] or [(verb, loaded)]
    return found


def test_generated_pages_are_what_the_code_says() -> None:
    for path, text in _generator().pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} has drifted from the code; run: make docs"


def test_every_verb_and_option_is_on_the_page_of_commands() -> None:
    # asked of the loaded commands, not of the generator: what a user can type is what must be there
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == {words for words, _ in _every_command()}
    for words, command in _every_command():
        names = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        options = {name for name in names if name.startswith("-")} - {"--help", "-h"}
        assert options, words
        missing = {name for name in options if f"`{name}`" not in sections[words]}
        assert not missing, f"docs/commands.md, {words}, lacks {missing}"
        mentioned = set(re.findall(r"`(--?[a-z0-9-]+)`", sections[words]))
        assert mentioned == options, f"docs/commands.md, {words}, has options that do not exist: {mentioned - options}"


def test_every_field_of_a_recipe_is_described() -> None:
    fields = list(_generator().recipe_fields())
    assert len(fields) > 80  # it walks into the nested sections
    assert [place for place, field in fields if not field.description] == []


def test_commands_in_the_documentation_parse() -> None:
    seen = set()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for words in _commands(page):
            where = f"{page.name}: {' '.join(words)}"
            if words[0] == "make":
                assert set(words[1:]) <= targets, where
            elif words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(words[2]) is not None, where
            else:
                assert words[0] == "pathup", where
                name, command = words[1], load_verb(words[1])
                rest = words[2:]
                if nested := getattr(command, "commands", {}):
                    name, command, rest = rest[0], nested[rest[0]], rest[1:]
                command.make_context(name, rest)  # raises a usage error where an option or value does not exist
            seen.add(words[1])
    assert {"demo", "test", "check", "tiles", "train", "generate"} <= seen


def test_python_in_the_readme_imports_what_exists() -> None:
    imported = []
    for block in _blocks(README, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                imported += [(node.module, name.name, hasattr(module, name.name)) for name in node.names]
    assert len(imported) > 5 and all(exists for _, _, exists in imported), imported


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    for link in (link for link in links if "://" not in link):
        file, _, anchor = link.partition("#")
        target = page if not file else page.parent / file
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name} links to {link}, and there is no such title"


# -- Makefile and CI -----------------------------------------------------------------------------------------


def test_ci_runs_the_checks_and_the_readmes_own_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text()
    assert "make check" in text
    block = re.search(r"^<!-- ci: test -->\n```sh\n(.*?)\n```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None and block[1] == "make test"
    program = re.search(r"awk '(.*?)' README.md", text)
    assert program is not None
    found = subprocess.run(["awk", program[1], str(README)], capture_output=True, text=True, check=True)
    assert found.stdout == "make test\n"


def _machine(folder: Path, python: str | None) -> dict[str, str]:
    """A PATH with the plain tools and at most one Python, a script."""
    (folder / "bin").mkdir()
    for tool in ("sh", "bash", "touch", "rm", "mkdir", "cat", "chmod", "env"):
        (folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
    if python is not None:
        fake = folder / "bin" / "python3.11"
        fake.write_text(python)
        fake.chmod(0o755)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return {"PATH": str(folder / "bin")}


def _make(folder: Path, environment: dict[str, str], target: str) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHON"))}
    return subprocess.run(
        [make, target], cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=60
    )


def test_make_without_a_fitting_python_says_so_in_one_sentence(tmp_path: Path) -> None:
    result = _make(tmp_path, _machine(tmp_path, "#!/bin/sh\nexit 1\n"), "test")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1 and said[0].startswith("PathUp needs Python 3.11 or 3.12")
    assert not (tmp_path / ".venv").exists()


FAKE_PYTHON = """#!/bin/sh
# answers that it is 3.11, and makes a .venv whose python writes down how it is called
if [ "$1" = -m ] && [ "$2" = venv ]; then
  mkdir -p "$3/bin"
  printf '#!/bin/sh\\necho "$OMP_NUM_THREADS:$*" >> calls\\n[ ! -e broken ]\\n' > "$3/bin/python"
  chmod +x "$3/bin/python"
fi
"""


def test_make_sets_up_one_environment_once_and_again_when_interrupted(tmp_path: Path) -> None:
    machine = {**_machine(tmp_path, FAKE_PYTHON), "OMP_NUM_THREADS": ""}
    (tmp_path / "broken").touch()  # as if the installation failed
    assert _make(tmp_path, machine, "test").returncode != 0
    (tmp_path / "broken").unlink()
    (tmp_path / "calls").unlink()
    for target in ("test", "check", "demo", "bench"):
        result = _make(tmp_path, machine, target)
        assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    installs = ["pip install" in call for call in calls]
    assert installs[0] and sum(installs) == 1 and len(calls) > 4  # one installation, and at least one call per target
    assert calls[0].endswith("-e .[dev]")
    assert calls[1] == "1:-m pytest -n 2 --dist loadfile"
    assert calls[2:4] == [":-m ruff check .", ":-m mypy"]
    assert calls[4].startswith(":-m pathup.demo --model models/atlas --out demo")
    benchmarks = [call.removeprefix(":").split()[0] for call in calls[5:]]
    assert "benchmarks/sampling.py" in benchmarks and len(benchmarks) == len(set(benchmarks))
    assert all((ROOT / benchmark).is_file() for benchmark in benchmarks)
