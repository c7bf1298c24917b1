"""Every Redis key of the router, with its time to live and the price of losing it."""

from twofold_chassis.keys import part

# Lost: each router finds out by itself which targets cannot be dialled. A hash of at most 1,000 targets, of all workspaces;
# each field says until when it counts, and the whole ends a minute after something was added last.


def rests() -> str:
    """Which targets rest because they could not be dialled."""
    return "targets:{rests}"


# Lost: the next resolve of the pair, or of the agent, asks the registry once. Live ten minutes, a denial half a minute;
# however old they are, they are answered from only if nothing that they rest on has changed since. The epoch of the
# registry's history is in the key. See cache.py for the encoding.


def permission(epoch: int, workspace_id: str, user_id: str, agent_id: str) -> str:
    """Whether a user may use an agent, as the registry said."""
    return f"c:{{{part(workspace_id)}}}:{epoch}:perm:{part(user_id)}:{part(agent_id)}"


def terms(epoch: int, workspace_id: str, user_id: str) -> str:
    """On what terms a user may use what was granted, as the registry said."""
    return f"c:{{{part(workspace_id)}}}:{epoch}:terms:{part(user_id)}"


def route(epoch: int, workspace_id: str, agent_id: str) -> str:
    """Where an agent lives, as the registry said."""
    return f"c:{{{part(workspace_id)}}}:{epoch}:route:{part(agent_id)}"


# What is counted, and what for. All of a workspace in one slot: one script looks at all its limits. <generation> is a word that
# is new with every set of counters: those of an older one are never seen again, and go by themselves.

MARKER_TTL_MS = 48 * 3600 * 1000
OPERATION_TTL_MS = 3600 * 1000


def marker(workspace_id: str) -> str:
    """Which counters are complete: what this very server was given or has counted since. Lives two days from the last use.

    Lost: the counters are set up anew from what the registry knows to have been used.
    """
    return f"g:{{{part(workspace_id)}}}"


def user_counters(workspace_id: str, generation: str, user_id: str) -> str:
    """What a user used. Lives two hours. Evicted alone (volatile-* policies, memory full): the user's windows begin anew."""
    return f"n:{{{part(workspace_id)}}}:{generation}:u:{part(user_id)}"


def agent_counters(workspace_id: str, generation: str, agent_id: str) -> str:
    """What was used of an agent. Lives two hours. Evicted alone: the agent's window begins anew."""
    return f"n:{{{part(workspace_id)}}}:{generation}:a:{part(agent_id)}"


def workspace_counters(workspace_id: str, generation: str) -> str:
    """What all of a workspace used. Lives two days. Evicted alone: the workspace's windows begin anew."""
    return f"n:{{{part(workspace_id)}}}:{generation}:w"


def operation(workspace_id: str, generation: str, operation_id: str) -> str:
    """That an operation was counted, when and as what. Lives an hour. Evicted alone: a repeat of it counts once more."""
    return f"o:{{{part(workspace_id)}}}:{generation}:{part(operation_id)}"
