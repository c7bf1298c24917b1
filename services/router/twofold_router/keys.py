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


# What is counted, and what for. All of a workspace in one slot: one script looks at all its limits. <generation> is a word
# that is new with every set of counters: those of an older one are never seen again, and go by themselves.

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


def counting(workspace_id: str, generation: str, user_id: str, agent_id: str, operation_id: str) -> tuple[str, ...]:
    """All that one operation is counted in, in the order of the scripts' keys: as the others here say, in half the time."""
    tag = part(workspace_id)
    counters = f"n:{{{tag}}}:{generation}:"
    return (
        f"g:{{{tag}}}",
        f"o:{{{tag}}}:{generation}:{part(operation_id)}",
        f"{counters}u:{part(user_id)}",
        f"{counters}a:{part(agent_id)}",
        f"{counters}w",
    )


def operation(workspace_id: str, generation: str, operation_id: str) -> str:
    """That an operation was counted, when and as what. Lives an hour. Evicted alone: a repeat of it counts once more."""
    return f"o:{{{part(workspace_id)}}}:{generation}:{part(operation_id)}"


# Pods and sessions. Pods are the truth of both: what is lost comes back with their next heartbeats, and until then some
# sessions are not found. Generations tell what was written before a loss from what was written since. Everything lives a day
# and is written anew each hour.
SESSION_TTL_MS = 24 * 3600 * 1000


def pod_leases() -> str:
    """Hash: pod → incarnation, end of its lease, router, address; and which server it is of, since when nobody is overdue.

    Lost: no sessions are listed until the pods' next heartbeats, and no pod is found to be dead for a lease.
    """
    return "p:{pods}:leases"


def pods_ended() -> str:
    """Hash: lives of pods whose sessions are to be cleared up, kept until that is done.

    Lost: sessions of pods that died just before are not taken over, and end in the history without a word.
    """
    return "p:{pods}:ended"


def pod_workspaces(pod_id: str, epoch: int, number: int) -> str:
    """Set: the workspaces that a life of a pod has sessions in. Evicted alone: as the one above, for this pod."""
    return f"p:{{pods}}:workspaces:{part(pod_id)}:{epoch}.{number}"


def session_generation(workspace_id: str) -> str:
    """The server that has all sessions of the workspace, and the generation of its table. Lost: they are announced anew."""
    return f"s:{{{part(workspace_id)}}}:generation"


def sessions_closed(workspace_id: str) -> str:
    """Sorted set: sessions (and fences) that others than their pods have closed, by time. Lives an hour.

    Lost: a pod that has not heard of it, within one heartbeat, goes on with the session until it touches it.
    """
    return f"s:{{{part(workspace_id)}}}:closed"


def session(workspace_id: str, generation: str, session_id: str) -> str:
    """Hash: who holds the session for whom, and under which fence. Evicted alone: its pod is told that it has lost it."""
    return f"s:{{{part(workspace_id)}}}:{generation}:session:{part(session_id)}"


def all_sessions(workspace_id: str, generation: str) -> str:
    """Sorted set: the ids of all sessions. This and the next three, evicted alone: not all are listed for up to an hour."""
    return f"s:{{{part(workspace_id)}}}:{generation}:all"


def user_sessions(workspace_id: str, generation: str, user_id: str) -> str:
    """Sorted set: the ids of a user's sessions."""
    return f"s:{{{part(workspace_id)}}}:{generation}:user:{part(user_id)}"


def agent_sessions(workspace_id: str, generation: str, agent_id: str) -> str:
    """Sorted set: the ids of an agent's sessions."""
    return f"s:{{{part(workspace_id)}}}:{generation}:agent:{part(agent_id)}"


def pod_sessions(workspace_id: str, generation: str, pod_id: str) -> str:
    """Sorted set: the ids of the sessions that a pod holds."""
    return f"s:{{{part(workspace_id)}}}:{generation}:pod:{part(pod_id)}"


def router_commands(router_id: str) -> str:
    """Channel: what other routers want told to pods that have their links at this one. Lost: as if the pod's link was."""
    return f"p:router:{part(router_id)}"


# The log of events of one agent: three keys in a slot of its own (a workspace may have many agents that talk). They live a
# day after the last event or subscriber (ROUTER__EVENT_LOG_TTL_S). Lost or evicted, in whole or in part: subscribers are
# told, by a reset or a gap; a repeat of a Publish from before publishes once more, and an old place is out of range.


def event_log(workspace_id: str, agent_id: str) -> tuple[str, str, str]:
    """Head, entries, and the request ids that have published."""
    tag = f"{{{part(workspace_id)}/{part(agent_id)}}}"
    return f"events:{tag}:head", f"events:{tag}:entries", f"events:{tag}:requests"


def event_channel(workspace_id: str, agent_id: str) -> str:
    """The channel on which it is told how far the log goes. Nothing is kept there; lost: the log is looked at anyway."""
    return f"events:{{{part(workspace_id)}/{part(agent_id)}}}:nudges"


def event_probe(router_id: str) -> str:
    """The channel on which a router listens to itself. Nothing is kept there."""
    return f"events:probe:{part(router_id)}"
