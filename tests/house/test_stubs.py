"""The committed stubs are those of the protos."""

import subprocess
import sys

from tests.house.contract import CLIENT, ROOT


def test_the_stubs_are_fresh() -> None:
    command = [sys.executable, "tools/generate_stubs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_proto_has_its_stub() -> None:
    protos = {path.relative_to(ROOT / "protos").with_suffix("") for path in (ROOT / "protos").rglob("*.proto")}
    stubs = {path.relative_to(CLIENT) for path in CLIENT.rglob("*_pb2.py")}
    assert {proto.with_name(f"{proto.name}_pb2.py") for proto in protos} == stubs
