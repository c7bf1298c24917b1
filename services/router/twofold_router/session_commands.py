"""What other routers want told to pods that have their links here, over channels of Redis.

A word that is lost costs little: what is to be closed is gone from the table already, what is sent is sent at most once, and
who asks hears that nobody answered.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from twofold_chassis import fields
from twofold_chassis.redis import RedisLink, RedisUnavailable
from twofold_chassis.redis_channels import RedisChannels
from twofold_chassis.refusals import Overloaded, PeerUnavailable
from twofold_router import keys
from twofold_router.links import Links
from twofold_router.sessions import (
    CloseReason,
    Incarnation,
    Message,
    PodLife,
    Session,
    SessionKey,
)

_ANSWER_S = 1.0
_ASKED_MAX = 1000
_AGAIN_S = 1.0


class _Word(BaseModel):
    """One command or answer."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["close", "send", "drain", "answer"]
    nonce: str = ""
    reply_to: str = ""
    sessions: tuple[Session, ...] = ()
    reason: str = ""
    pod_id: str = ""
    message_id: str = ""
    payload: str = ""
    count: int = 0


class PodCommands:
    """The way to the pods' links: those of this router, and those of the others, who are asked."""

    def __init__(self, links: Links, link: RedisLink, channels: RedisChannels, *, router_id: str) -> None:
        self._links = links
        self._link = link
        self._channels = channels
        self._router_id = router_id
        self._asked: dict[str, asyncio.Future[int]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._logger = structlog.get_logger("twofold.sessions")

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens until the block ends, whenever Redis is there."""
        task = asyncio.create_task(self._subscribe())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._channels.unsubscribe(keys.router_commands(self._router_id), self._heard)
            if self._telling:
                await asyncio.wait(self._telling)

    def has(self, session: Session) -> bool:
        return self._links.has(session)

    def held(self, key: SessionKey) -> Session | None:
        return self._links.held(key)

    async def close(self, router_id: str, session: Session, reason: CloseReason) -> bool:
        if router_id == self._router_id:
            return self._links.close(session, reason)
        return bool(await self._ask(router_id, _Word(kind="close", sessions=(session,), reason=reason.value)))

    async def send(self, router_id: str, sessions: Sequence[Session], message: Message) -> int:
        if router_id == self._router_id:
            return self._links.send([(one.key, one.life.pod_id) for one in sessions], message)
        payload = base64.b64encode(message.payload).decode()
        word = _Word(kind="send", sessions=tuple(sessions), message_id=message.message_id, payload=payload)
        return await self._ask(router_id, word)

    async def drain(self, router_id: str, pod_id: str, reason: str) -> bool:
        if router_id == self._router_id:
            return self._links.drain(pod_id, reason)
        return bool(await self._ask(router_id, _Word(kind="drain", pod_id=pod_id, reason=reason)))

    async def _ask(self, router_id: str, word: _Word) -> int:
        """What the router answers. Raises PeerUnavailable, Overloaded."""
        if len(self._asked) >= _ASKED_MAX:
            raise Overloaded("too many words to other routers are under way", retry_after_s=0.1)
        nonce = fields.new_id()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked[nonce] = answer
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._publish(router_id, word.model_copy(update={"nonce": nonce, "reply_to": self._router_id}))
                return await answer
        except (TimeoutError, RedisUnavailable):
            raise PeerUnavailable("the router that has the pod's link does not answer", peer="router") from None
        finally:
            del self._asked[nonce]

    async def _publish(self, router_id: str, word: _Word) -> None:
        await self._link.call("PUBLISH", keys.router_commands(router_id), word.model_dump_json().encode())

    async def _subscribe(self) -> None:
        while True:
            try:
                await self._channels.subscribe(keys.router_commands(self._router_id), self._heard)
                return
            except RedisUnavailable:
                await asyncio.sleep(_AGAIN_S)

    def _heard(self, told: bytes) -> None:
        try:
            word = _Word.model_validate_json(told)
        except ValidationError:  # another version's, or written by hand
            self._logger.warning("a word of another router is not understood")
            return
        if word.kind == "answer":
            answer = self._asked.get(word.nonce)
            if answer is not None and not answer.done():
                answer.set_result(word.count)
            return
        task = asyncio.create_task(self._answer(word, self._done(word)))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _done(self, word: _Word) -> int:
        if word.kind == "close":
            return sum(self._links.close(_own(one), CloseReason(word.reason)) for one in word.sessions)
        if word.kind == "drain":
            return int(self._links.drain(word.pod_id, word.reason))
        message = Message(word.message_id, base64.b64decode(word.payload))
        return self._links.send([(SessionKey(*one.key), one.life.pod_id) for one in word.sessions], message)

    async def _answer(self, word: _Word, count: int) -> None:
        with contextlib.suppress(RedisUnavailable):
            await self._publish(word.reply_to, _Word(kind="answer", nonce=word.nonce, count=count))


def _own(session: Session) -> Session:
    life = PodLife(session.life.pod_id, Incarnation(*session.life.incarnation))
    return session._replace(key=SessionKey(*session.key), life=life)
