"""Generates the Python stubs of the contract into the client package, or proves that they are fresh.

python tools/generate_stubs.py            # writes clients/python/twofold/<service>/v1/*_pb2*
python tools/generate_stubs.py --check    # writes nothing; exit status 1 names each stale file
"""

import argparse
import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
CLIENT = ROOT / "clients" / "python"


def generate(target: Path) -> None:
    """Writes all stubs below `target`, which mirrors the packages: twofold/registry/v1/…_pb2.py."""
    well_known = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{well_known}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet,only_async:{target}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    for path in list(target.rglob("*_pb2_grpc.py")):
        if not _has_service(path):
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)


def _has_service(stub: Path) -> bool:
    return "class " in stub.read_text()


def _stubs(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.glob("twofold/*/v1/*_pb2*") if path.suffix in (".py", ".pyi")}


def stale(fresh: Path, committed: Path) -> list[str]:
    """The stubs that differ between the two trees, or exist in one of them only."""
    names = _stubs(fresh) | _stubs(committed)
    return sorted(
        str(name)
        for name in names
        if not (fresh / name).exists()
        or not (committed / name).exists()
        or not filecmp.cmp(fresh / name, committed / name, shallow=False)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs, write nothing")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = stale(fresh, CLIENT)
        for name in names:
            if check:
                print(f"stale stub: {name} (run: python tools/generate_stubs.py)", file=sys.stderr)
            elif (fresh / name).exists():
                (CLIENT / name).parent.mkdir(parents=True, exist_ok=True)
                (CLIENT / name).write_bytes((fresh / name).read_bytes())
            else:
                (CLIENT / name).unlink()
    return 1 if check and names else 0


if __name__ == "__main__":
    raise SystemExit(main())
