"""Every Redis key of the router, with its time to live and the price of losing it."""

from twofold_chassis.keys import part

# Lost: the next resolve of the pair, or of the agent, asks the registry once. Live ten minutes, a denial half a minute;
# however old they are, they are answered from only if nothing that they rest on has changed since. The epoch of the
# registry's history is in the key. See cache.py for the encoding.


def permission(epoch: int, workspace_id: str, user_id: str, agent_id: str) -> str:
    """Whether a user may use an agent, as the registry said."""
    return f"c:{{{part(workspace_id)}}}:{epoch}:perm:{part(user_id)}:{part(agent_id)}"


def route(epoch: int, workspace_id: str, agent_id: str) -> str:
    """Where an agent lives, as the registry said."""
    return f"c:{{{part(workspace_id)}}}:{epoch}:route:{part(agent_id)}"
