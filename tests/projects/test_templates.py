"""Every project template: rendered, checked, and run from the first step to the talk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from neurodl.errors import StorageError, UnknownNameError
from neurodl.study.templates import list_templates, new_project, templates_folder

STEPS = ["01_data", "02_encoding", "03_controls", "04_question", "05_publish"]
TEMPLATES = list(list_templates())
MODELLING_STEPS = (
    "Phenomenon State-of-the-art Ingredients Hypothesis Toolkit Plan Implementation Completion "
    "Evaluation Publication"
)


@pytest.fixture
def project(request, tmp_path):
    """A project of a template, by the name of the template."""
    return new_project(tmp_path / "pod 7", request.param, repository="https://github.com/us/pod")


def test_the_templates_are_those_that_are_promised():
    assert set(TEMPLATES) == {
        "algonauts-videos",
        "architecture-comparison",
        "encoding-images",
        "finetune-fmri",
        "forgetting",
        "population-sequence",
        "robustness-blur",
        "spikes-encoding",
    }


@pytest.mark.parametrize("project", TEMPLATES, indirect=True)
def test_a_project_is_whole(project):
    names = {path.name for path in project.iterdir()}
    expected = {f"{step}.{kind}" for step in STEPS for kind in ("py", "ipynb")}
    expected |= {"README.md", "study.toml", "settings.toml", "talk.toml", "project.py", "common.py"}
    assert expected <= names
    assert not names & {"title.txt", "colab.py", "begin.md", "work.md", "copier.yml"}
    texts = {path: path.read_text() for path in project.rglob("*.*") if path.is_file()}
    assert not [path for path, text in texts.items() if "{%" in text or "{{ " in text]
    readme = (project / "README.md").read_text()
    headings = re.findall(r"^## \d+\. ([\w -]+)", readme, re.MULTILINE)
    assert [one.replace(" ", "-") for one in headings] == MODELLING_STEPS.split()
    assert readme.startswith("# pod 7: ")
    assert "colab.research.google.com/github/us/pod/blob/main/01_data.ipynb" in readme
    assert ("networks.py" in names) == ("from networks" in (project / "project.py").read_text())


@pytest.mark.parametrize("project", TEMPLATES, indirect=True)
def test_notebooks_are_the_scripts_and_install_in_colab(project):
    for step in STEPS:
        notebook = json.loads((project / f"{step}.ipynb").read_text())
        cells = ["".join(cell["source"]) for cell in notebook["cells"]]
        assert "google.colab" in cells[1]
        assert "https://github.com/us/pod" in cells[1]
        script = (project / f"{step}.py").read_text()
        assert all(line in script for line in "\n".join(cells[1:]).splitlines() if "%" not in line)
        assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.parametrize("project", TEMPLATES, indirect=True)
def test_the_code_is_clean(project):
    rules = ["--select", "E,F,B,UP,SIM", "--ignore", "E402,E501", "--line-length", "100"]
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", *rules, str(project)]
    checked = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("project", TEMPLATES, indirect=True)
def test_the_study_file_is_valid(project, monkeypatch):
    from neurodl.study.sections import Study

    content = tomllib.loads((project / "study.toml").read_text())
    assert Study.model_validate(content).study.name


@pytest.mark.slow
@pytest.mark.parametrize("project", TEMPLATES, indirect=True)
def test_the_project_runs_on_its_twin(project):
    settings = project / "settings.toml"
    settings.write_text(settings.read_text().replace('data = "twin"', 'data = "real"'))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    ran = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "3 passed" in ran.stdout
    assert not (project / "results").exists()


def test_the_command_lists_and_makes_projects(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, _ = run("new")
    assert status == 0
    assert all(name in printed for name in TEMPLATES)
    status, printed, _ = run("new", "ours", "--template", "spikes-encoding")
    assert status == 0
    assert "01_data.py, 02_encoding.py" in printed
    assert (tmp_path / "ours" / "README.md").is_file()


def test_wrong_use_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, said = run("new", "ours", "--template", "spike-encoding")
    assert (status, "Did you mean 'spikes-encoding'" in said) == (1, True)
    status, printed, said = run("new", "ours")
    assert status == 2
    assert "--template" in said
    assert "encoding-images" in printed
    with pytest.raises(ValueError, match="letters, digits"):
        new_project("a;b", "forgetting")
    with pytest.raises(ValueError, match="must be like"):
        new_project("ours", "forgetting", repository="github.com/us")
    with pytest.raises(UnknownNameError, match="encoding-images"):
        new_project("ours", "x")
    assert not list(tmp_path.iterdir())
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="holds something"):
        new_project("ours", "forgetting")
    assert [path.name for path in tmp_path.rglob("*")] == ["ours", "thesis.tex"]


def test_the_templates_are_found_in_a_checkout_and_copied_into_packages():
    assert (templates_folder() / "copier.yml").is_file()
    built = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    included = built["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["projects"] == "neurodl/projects"
