"""The command `twofold`: what a person runs."""

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from twofold_chassis.start import StartError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command. What cannot go on is one sentence on standard error and exit status 1."""
    chosen = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        status = asyncio.run(_command(chosen, console))
    except StartError as error:
        print(f"twofold: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="twofold", description="The platform layer of an AI-agent cloud.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('twofold-services')}")
    commands = parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="run the stack: Postgres, Redis and the three services")
    up.add_argument("--ephemeral", action="store_true", help="on free ports and data of its own, gone at the end")
    up.add_argument("--folder", type=Path, help="where data and logs are kept (default: ./.twofold)")

    demo = commands.add_parser("demo", help="the main job from end to end, Redis killed in the middle")
    demo.add_argument(
        "--transcripts", type=Path, metavar="FILE", help="replay these conversations (JSONL) through memory instead"
    )
    demo.add_argument("--kill-redis", action="store_true", help="with --transcripts: kill -9 Redis halfway")

    _add_transfers(commands)
    _add_audit(commands)

    commands.add_parser("migrate", help="bring the schemas of DATABASE__URL up to date")

    health = commands.add_parser("health", help="ask a service how it is; exit status 0 if it serves")
    health.add_argument("target", help="host:port")
    health.add_argument("--service", default="", help="full name of one gRPC service (default: all of the server's)")
    return parser


def _add_transfers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    into = commands.add_parser("import", help="conversations (JSONL in the chat-completion shape) from a file into memory")
    into.add_argument(
        "file", type=Path, metavar="FILE", help="one conversation a line; the same file again stores nothing twice"
    )
    into.add_argument("--user", default="", help="user of conversations whose line names none")
    into.add_argument("--import-id", default="", help="name of the text (default: made of the file's content)")
    into.add_argument("--first-line", type=int, default=1, metavar="N", help="to go on with an import that was cut off")
    into.add_argument("--stop", action="store_true", help="stop at the first line that cannot be taken")

    out = commands.add_parser("export", help="conversations from memory into a file, or to standard output")
    out.add_argument("file", type=Path, metavar="FILE", nargs="?", help="default: standard output")
    out.add_argument("--user", default="", help="only conversations of this user")
    out.add_argument("--thread", action="append", default=[], metavar="ID", help="only this one; may be given several times")
    out.add_argument("--deleted", action="store_true", help="deleted conversations and messages as well")
    out.add_argument("--service-fields", action="store_true", help="numbers, turns and times as well")
    for command in (into, out):
        command.add_argument("--workspace", required=True, metavar="ID", help="the workspace")
        command.add_argument(
            "--target", default="", metavar="HOST:PORT", help="the memory service (default: 127.0.0.1:50052)"
        )


def _add_audit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    audit = commands.add_parser("audit", help="verify, export and sign what the registry tells of every change")
    kinds = audit.add_subparsers(dest="audit", required=True)
    verify = kinds.add_parser("verify", help="have the service verify a workspace's chain; exit status 0 if it is whole")
    verify.add_argument("--head", type=Path, metavar="FILE", help="a head from `twofold audit head` that it must still hold")
    export = kinds.add_parser("export", help="every entry as a line of JSON, oldest first")
    head = kinds.add_parser("head", help="the end of the chain, signed, as JSON: keep it where operators cannot change it")
    for command in (verify, export, head):
        command.add_argument("workspace", metavar="WORKSPACE", help="the workspace")
        command.add_argument("--target", default="", metavar="HOST:PORT", help="the registry (default: 127.0.0.1:50051)")
    for command in (export, head):
        command.add_argument("file", type=Path, metavar="FILE", nargs="?", help="default: standard output")
    file = kinds.add_parser("verify-file", help="verify an exported file, without any service")
    file.add_argument("file", type=Path, metavar="FILE")
    file.add_argument("--head", type=Path, metavar="FILE", help="a head that the file must hold")
    file.add_argument("--key", default="", metavar="BASE64", help="the public key (default: the one in the head's file)")


# Each command imports what it needs: `twofold health` runs every few seconds in a container.


def _command(chosen: argparse.Namespace, console: Console) -> Coroutine[Any, Any, int]:
    match chosen.command:
        case "up":
            return _up(chosen, console)
        case "demo":
            return _demo(chosen, console)
        case "import":
            return _import(chosen, console)
        case "export":
            return _export(chosen, console)
        case "audit":
            return _audit(chosen, console)
        case "migrate":
            return _migrate(console)
        case _:
            return _health(chosen, console)


async def _up(chosen: argparse.Namespace, console: Console) -> int:
    from twofold_cli.up import up

    if chosen.ephemeral and chosen.folder:
        raise StartError("--ephemeral makes a folder of its own: leave --folder out")
    return await up(console, folder=chosen.folder, ephemeral=chosen.ephemeral)


async def _demo(chosen: argparse.Namespace, console: Console) -> int:
    if chosen.transcripts is None:
        from twofold_cli.demo.scenario import demo

        return await demo(console)
    from twofold_cli.demo.replay import replay

    return await replay(console, chosen.transcripts, kill_redis=chosen.kill_redis)


async def _import(chosen: argparse.Namespace, console: Console) -> int:
    from twofold.client import MEMORY
    from twofold_cli.transfer import import_file

    if chosen.first_line < 1:
        raise StartError("--first-line counts from 1")
    return await import_file(
        console,
        chosen.file,
        target=chosen.target or MEMORY,
        workspace_id=chosen.workspace,
        user_id=chosen.user,
        import_id=chosen.import_id,
        first_line=chosen.first_line,
        stop_at_error=chosen.stop,
    )


async def _export(chosen: argparse.Namespace, console: Console) -> int:
    from twofold.client import MEMORY
    from twofold.memory.v1.transfer_pb2 import ExportConversationsRequest
    from twofold_cli.transfer import export_file

    request = ExportConversationsRequest(
        workspace_id=chosen.workspace,
        user_id=chosen.user,
        thread_ids=chosen.thread,
        include_deleted=chosen.deleted,
        include_service_fields=chosen.service_fields,
    )
    return await export_file(console, chosen.file, target=chosen.target or MEMORY, request=request)


async def _audit(chosen: argparse.Namespace, console: Console) -> int:
    from twofold.client import REGISTRY
    from twofold_cli import audit

    match chosen.audit:
        case "verify":
            return await audit.verify(console, chosen.workspace, target=chosen.target or REGISTRY, head=chosen.head)
        case "export":
            return await audit.export(chosen.workspace, chosen.file, target=chosen.target or REGISTRY)
        case "head":
            return await audit.export_head(chosen.workspace, chosen.file, target=chosen.target or REGISTRY)
        case _:
            return audit.verify_file(console, chosen.file, head=chosen.head, key=chosen.key)


async def _migrate(console: Console) -> int:
    from twofold_cli.environment import person_environment
    from twofold_cli.migrate import migrate_all

    await migrate_all(person_environment())
    console.print("schemas are up to date")
    return 0


async def _health(chosen: argparse.Namespace, console: Console) -> int:
    from twofold_cli.health import health

    serves, sentence = await health(chosen.target, chosen.service)
    console.print(sentence, markup=False)
    return 0 if serves else 1


if __name__ == "__main__":
    main()
