"""The Dockerfile as far as it can be checked without a registry: what it copies is there and is enough."""

import json
import re
import shlex

from running import ROOT
from test_imports import FILES, imports

import serve

LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
STEPS = [tuple(line.split(None, 1)) for line in LINES if line and not line.startswith("#")]


def of(name: str) -> list[str]:
    """What follows each instruction `name`."""
    return [rest for step, rest in STEPS if step == name]


def copied() -> list[str]:
    return [source for rest in of("COPY") for source in shlex.split(rest)[:-1]]


def kept_by_dockerignore(path: str) -> bool:
    """Whether `path`, or something in that folder, reaches the build."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return any(line.startswith("!") and re.match(line[1:].replace("*", "[^/]*").rstrip("/"), path) for line in lines)


def test_what_is_copied_is_there():
    for source in copied():
        assert (ROOT / source).exists(), source
        assert kept_by_dockerignore(source) or source == "models/", source
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1] == "*"


def test_all_that_the_server_imports_is_copied():
    found, left = set(), ["serve"]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += imports(FILES[name]) & set(FILES)
    lost = {FILES[name].relative_to(ROOT).as_posix() for name in found}
    lost = {path for path in lost if not any(path == x or path.startswith(x) for x in copied())}
    assert not lost


def test_the_server_understands_its_command_line():
    (line,) = of("ENTRYPOINT")
    program, script, *flags = json.loads(line)
    args = serve.parse_args(flags)
    assert (program, script, args.host) == ("python", "serve.py", "0.0.0.0")
    assert of("EXPOSE") == [str(args.port)]
    assert f":{args.port}/health" in of("HEALTHCHECK")[0]


def test_it_runs_as_nobody_in_particular():
    names = [step for step, _ in STEPS]
    assert of("USER") == ["captions"] and "useradd" in of("RUN")[-1]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("RUN", "COPY"))
    assert re.fullmatch(r"python:3\.\d+-slim", of("FROM")[0])


def test_packages_are_those_of_the_requirements():
    optional = (ROOT / "requirements-optional.txt").read_text(encoding="utf-8")
    for package in serve.PACKAGES:
        name = package.replace("_", "-")
        assert name in of("RUN")[0] and re.search(rf"^{name}>=", optional, re.MULTILINE)
