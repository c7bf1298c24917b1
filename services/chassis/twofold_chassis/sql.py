"""Named SQL statements in files: `-- name: newest_messages` begins a statement, the next name ends it."""

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def load(package: str) -> dict[str, str]:
    """All statements of the `.sql` files in `package`, by name. A name that stands twice is a defect and raises."""
    statements: dict[str, str] = {}
    for file in sorted(resources.files(package).iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        pieces = _NAME.split(file.read_text(encoding="utf-8"))
        for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
            if name in statements:
                raise ValueError(f"the statement {name} stands twice in {package}")
            statements[name] = body.strip().rstrip(";")
    return statements
