"""How the operator asks a running node: over a link of its own, with its own key.

Owns the operator's service and its asker. Whoever holds the node's identity file is its operator: the asker dials the
node as the node itself, and the service answers nobody else.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swarm_ledger.accounts import Address, address_text, parse_address
from swarm_ledger.currencies import Currency
from swarm_ledger.errors import LedgerError
from swarm_net.clocks import SystemClock
from swarm_net.direct import DirectTransport
from swarm_net.endpoint import Endpoint
from swarm_net.errors import NetError
from swarm_net.identity import Identity
from swarm_net.links import Link, PeerId
from swarm_net.messages import Rpc
from swarm_net.rpc import RpcServices
from swarm_net.session_errors import ComputeFailed, Unsupported
from swarm_node.data_dir import RunningNode

SERVICE, STATUS, REDEEM, MINT = "operator", "status", "redeem", "mint"
TIMEOUT_S = 5.0


def serve_operator(
    services: RpcServices,
    own: PeerId,
    status: Callable[[], dict[str, Any]],
    *,
    redeem: Callable[[], Awaitable[None]] | None = None,
    mint: Callable[[Address, int], Awaitable[int]] | None = None,
) -> None:
    """Answer the node's own operator: how it is, or, once it has redeemed what it can, how it is then; and mint."""

    async def answer(link: Link, method: str, body: bytes) -> bytes:
        if link.peer != own or method not in (STATUS, REDEEM, MINT):
            raise Unsupported(feature=f"{SERVICE}.{method}")
        if method == MINT:
            if mint is None:
                raise ComputeFailed(reason="this node hosts no bank")
            asked = msgspec.json.decode(body, type=_Mint)
            try:
                balance = await mint(parse_address(asked.account), int(asked.amount))
            except (LedgerError, ValueError) as error:
                raise ComputeFailed(reason=str(error)) from error
            return msgspec.json.encode(_Minted(asked.account, asked.amount, str(balance)))
        if method == REDEEM and redeem is not None:
            await redeem()
        return json.dumps(status()).encode()

    services.add(SERVICE, answer)


class _Mint(Struct, frozen=True):
    account: str
    amount: str  # in the smallest unit


class _Minted(Struct, frozen=True):
    account: str
    minted: str
    balance: str


async def ask_status(node: RunningNode, *, redeem: bool = False) -> dict[str, Any]:
    """Return what a node tells of itself, after it has redeemed if so asked; `error` where it does not answer."""
    known = {"node": node.name, "pid": node.pid, "data_dir": str(node.path)}
    try:
        return {**known, **json.loads(await _ask(node, REDEEM if redeem else STATUS))}
    except NetError as error:
        return {**known, "error": str(error)}


async def ask_mint(node: RunningNode, account: Address, amount: int) -> dict[str, Any]:
    """Have the bank that a node hosts give an account credits; returns what came of it, in the smallest unit.

    Raises NetError where the node does not answer, SessionError where it refuses.
    """
    asked = msgspec.json.encode(_Mint(address_text(account), str(amount)))
    minted: dict[str, Any] = json.loads(await _ask(node, MINT, asked))
    return {"node": node.name, **minted}


async def _ask(node: RunningNode, method: str, body: bytes = b"") -> bytes:
    identity = Identity.load_or_create(node.identity_file)
    clock = SystemClock()
    endpoint = Endpoint(peer=identity.peer_id, transport=DirectTransport(identity, clock), clock=clock)
    try:
        link = await endpoint.dial(str(node.state["operator_address"]), TIMEOUT_S)
        _, answer = await endpoint.request(
            link, Rpc(request=0, service=SERVICE, method=method), timeout_s=TIMEOUT_S, body=body
        )
        return bytes(answer)
    finally:
        await endpoint.close()


async def ask_all(nodes: Sequence[RunningNode]) -> list[dict[str, Any]]:
    """Ask several nodes at once."""
    return list(await asyncio.gather(*(ask_status(node) for node in nodes)))


def show_status(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Show nodes to people: what they do, and how others join them."""
    paid = [row for row in rows if "price" in row]
    table = Table("node", "model", "blocks", "sessions", "busy", "KV used", "tokens", "tokens/s")
    for row in rows:
        if "error" in row:
            table.add_row(row["node"], Text(row["error"], style="red"))
            continue
        start, end = row["blocks"]
        used = 1 - row["kv_tokens_free"] / max(row["kv_tokens"], 1)
        table.add_row(
            row["node"],
            row["model"],
            f"{start}:{end} of {row['num_blocks']}",
            str(row["sessions"]),
            f"{row['busy']:.0%}",
            f"{used:.0%}",
            f"{row['tokens_computed']:,}",
            f"{row['decode_tokens_per_s']:.0f}",
        )
    console.print(table)
    if paid:
        console.print(money_table(paid))
    for row in rows:
        if "error" not in row:
            console.print(f"{row['node']}  --bootstrap {row['bootstrap'][0]}", soft_wrap=True, highlight=False)


def money_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return what nodes ask, have earned, and have got of it."""
    table = Table("node", "asks for an hour", "for 1M tokens", "earned", "redeemed", "unclaimed")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        price = row["price"]
        currency = Currency(price["currency"], price["decimals"])
        asked = (currency.format(price["price_per_hour"], 4), currency.format(price["per_million_tokens"], 4))
        table.add_row(
            row["node"], *asked, *(currency.format(price[what]) for what in ("earned", "redeemed", "unclaimed"))
        )
    return table
