"""What is built from this tree: the client, alone with grpcio and protobuf; the services, with all they read at run time."""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
BUILD_S = 60
RUN_TIME_FILES = ("*.sql", "*.lua", "py.typed")


def wheel(project: Path, folder: Path) -> zipfile.ZipFile:
    """Builds with the build backend that is installed here, so that nothing is fetched."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=project,
        check=True,
        capture_output=True,
        timeout=BUILD_S,
    )
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return wheel(ROOT / "clients/python", tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return wheel(ROOT, tmp_path_factory.mktemp("services"))


def required(names: list[str]) -> set[str]:
    """The distributions that these need, and what those need, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        needs = [Requirement(need) for need in metadata.requires(name) or ()]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def files_of(package: Path, kinds: tuple[str, ...]) -> set[str]:
    """Their names as they must stand in the wheel."""
    return {str(path.relative_to(package.parent)) for kind in kinds for path in package.rglob(kind)}


def test_the_client_holds_all_stubs_and_its_types(client: zipfile.ZipFile) -> None:
    expected = files_of(ROOT / "clients/python/twofold", ("*.py", "*.pyi", "py.typed"))
    assert {"twofold/py.typed", "twofold/memory/v1/message_pb2.pyi"} <= expected
    assert expected <= set(client.namelist())


def test_the_services_hold_everything_they_read_at_run_time(services: zipfile.ZipFile) -> None:
    names = set(services.namelist())
    for package in (ROOT / "services").glob("*/twofold_*"):
        assert files_of(package, RUN_TIME_FILES) <= names


def test_the_client_is_no_part_of_the_services(services: zipfile.ZipFile) -> None:
    assert not [name for name in services.namelist() if name.startswith("twofold/")]


def test_every_console_script_of_the_services_has_its_function(services: zipfile.ZipFile) -> None:
    (name,) = [name for name in services.namelist() if name.endswith("entry_points.txt")]
    lines = [line for line in services.read(name).decode().splitlines() if "=" in line]
    modules = {line.split("=")[1].strip().split(":")[0] for line in lines}
    files = {module.replace(".", "/") + ".py" for module in modules}
    assert len(lines) == 4
    assert files <= set(services.namelist())


def test_the_client_works_alone_with_grpcio_and_protobuf(client: zipfile.ZipFile, tmp_path: Path) -> None:
    client.extractall(tmp_path)
    (about,) = [name for name in client.namelist() if name.endswith("/METADATA")]
    needs = [line.split(":", 1)[1] for line in client.read(about).decode().splitlines() if line.startswith("Requires-Dist:")]
    direct = [Requirement(need).name for need in needs]
    assert sorted(direct) == ["grpcio", "protobuf"]
    for name in required(direct):
        _link(name, tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import twofold, pkgutil, importlib\n"
        "for module in pkgutil.walk_packages(twofold.__path__, 'twofold.'): importlib.import_module(module.name)\n"
        "twofold.Twofold(), twofold.ContextProvider\n"
        "assert not {'google.rpc', 'grpc_status'} & set(sys.modules)"
    )
    # -I and -S: without this environment's packages, so only what was linked can be found.
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, timeout=BUILD_S)


def _link(name: str, folder: Path) -> None:
    """Puts the files of an installed distribution into `folder`; some packages share one folder of names (google)."""
    for file in metadata.files(name) or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path(file.locate()).resolve())
