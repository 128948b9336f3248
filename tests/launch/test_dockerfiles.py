"""The Dockerfiles in launch/ copy files that exist, and install the versions of the requirements files.

They are read here, not built: that needs a container engine.

python -m pytest tests/launch/test_dockerfiles.py
"""

import re
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[2]
REQUIREMENTS = {
    "cpu": ["requirements.txt"],
    "cuda": ["launch/requirements-cuda.txt", "requirements.txt"],
    "npu": ["launch/requirements-npu.txt", "requirements.txt"],
}
"""The lists of the device, the first of which wins. The last one has openmpi for all."""


def instructions(device: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of each line of a Dockerfile, with continued lines joined and without comments."""
    text = (ROOT / f"launch/Dockerfile.{device}").read_text(encoding="utf-8")
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    found = [line.split(maxsplit=1) for line in text.splitlines() if line]
    return [(words[0], words[1]) for words in found]


def arguments(device: str, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(device) if instruction == name]


def pins(text: str) -> dict[str, str]:
    """Package -> what it is pinned to: a version, or a revision of a git repository."""
    exact = re.findall(r"(?<![\w.-])([\w.-]+)==([\w.+]+)", text)
    git = re.findall(r"git\+https://\S+/([\w-]+?)(?:\.git)?@([\w.]+)", text)
    return {name.lower().replace("_", "-"): version for name, version in [*exact, *git]}


@pytest.mark.parametrize("device", REQUIREMENTS)
def test_every_copied_path_exists_and_the_program_is_complete(device: str) -> None:
    paths = [path for one in arguments(device, "COPY") for path in one.split()[:-1] if not path.startswith("--")]
    assert not [path for path in paths if not (ROOT / path).exists()]
    project = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    programs = [f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]]
    needed = [*programs, "pyproject.toml", project["project"]["readme"], "configs", "launch", "r1zero", "tests"]
    assert not set(needed) - set(paths)


@pytest.mark.parametrize("device", REQUIREMENTS)
def test_each_file_is_copied_before_it_is_used(device: str) -> None:
    """The lists of packages are copied first; what a RUN names must be there by then."""
    there: set[str] = set()
    for instruction, rest in instructions(device):
        if instruction == "COPY":
            there |= {path for path in rest.split()[:-1] if not path.startswith("--")}
        named = re.findall(r"(?<!/)\b(?:launch/)?(?:requirements[\w-]*\.txt|install\.sh)", rest)
        if instruction == "RUN":
            assert set(named) <= there, rest
    assert REQUIREMENTS[device][0] in there


@pytest.mark.parametrize("device", REQUIREMENTS)
def test_the_versions_are_those_of_the_requirements(device: str) -> None:
    lists: dict[str, str] = (
        {"vllm": "v0.23.0"} if device == "npu" else {}
    )  # built from source; see requirements-npu.txt
    for name in reversed(REQUIREMENTS[device]):
        lists |= pins((ROOT / name).read_text(encoding="utf-8"))
    used = pins(" ".join(arguments(device, "RUN")))
    assert used.items() <= lists.items()
    assert ("openmpi" in used) == (device != "cpu")


@pytest.mark.parametrize("device", REQUIREMENTS)
def test_the_base_image_has_a_tag_and_a_permitted_python(device: str) -> None:
    (base,) = arguments(device, "FROM")
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", base) and not base.endswith(":latest")
    versions = re.findall(r"python(3\.\d+)", base.replace("py3", "python3").replace("python:", "python"))
    versions += re.findall(r"python(3\.\d+)", " ".join(arguments(device, "RUN")))
    assert set(versions) <= {"3.11", "3.12"} and len(set(versions)) == 1


def test_the_ascend_image_is_that_of_the_guide() -> None:
    """The guide and the list of packages name the version of CANN; the commands are those of its step 3."""
    (base,) = arguments("npu", "FROM")
    cann = re.search(r"CANN ([\d.]+\d)", (ROOT / "launch/requirements-npu.txt").read_text(encoding="utf-8"))
    assert cann and f"/cann:{cann[1]}-a3-" in base
    guide = (ROOT / "launch/README.md").read_text(encoding="utf-8")
    step = guide.split("## 3. Packages")[1].split("## 4.")[0]
    wanted = [
        line.split("   #")[0].strip() for line in step.splitlines() if "pip install" in line and line[:4] == "    "
    ]
    run = arguments("npu", "RUN")[-1]
    assert len(wanted) == 6
    assert not [line for line in wanted if line not in run]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_program_does_not_run_as_root(device: str) -> None:
    (user,) = arguments(device, "USER")
    after = instructions(device)[[name for name, _ in instructions(device)].index("USER") :]
    assert user != "root" and f"useradd --create-home {user}" in " ".join(arguments(device, "RUN"))
    assert all(rest.startswith(f"--chown={user} ") for name, rest in after if name == "COPY")
