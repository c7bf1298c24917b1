"""Every Redis key of the router, with its time to live and the price of losing it."""

from twofold_chassis.keys import part

# Lost: the next resolve of the agent asks the registry once. Lives ROUTER__ROUTE_TTL_S, counted from the moment the
# registry was asked, so that no copy is ever used when it is older.


def route(workspace_id: str, agent_id: str) -> str:
    """Where an agent lives, as the registry said: see cache.py for the encoding."""
    return f"c:{{{part(workspace_id)}}}:route:{part(agent_id)}"
