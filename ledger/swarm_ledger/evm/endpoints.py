"""Several RPC endpoints behind one question: the next is asked where one fails, and why is remembered.

Owns connections, deadlines and the check that an endpoint serves the chain that it should. An endpoint is trusted to
tell the truth about the chain and for nothing else: it sees no keys, and what it answers may be nonsense. URLs often
hold a key of the provider's customer: only hosts are ever shown. Called by `sending.py`, `event_log.py`,
`evm_ledger.py` and `deploying.py`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import ContractLogicError, Web3RPCError
from web3.providers import AsyncBaseProvider

from swarm_ledger.errors import LedgerError, LedgerUnreachable, WrongChain
from swarm_ledger.evm import contract, questions
from swarm_ledger.evm.questions import Question

REQUEST_TIMEOUT_S = 10.0
PAUSE_S = 0.5
MOST_REASON_CHARS = 160

T = TypeVar("T")


class Endpoint:
    """One RPC endpoint."""

    def __init__(self, name: str, provider: AsyncBaseProvider) -> None:
        self.name = name
        self.provider = provider
        # Its middleware would fill in what we always give, and ask for the chain before each call.
        self.eth = AsyncWeb3(provider, middleware=[]).eth
        self.is_checked = False

    @classmethod
    def of_url(cls, url: str) -> "Endpoint":
        """Return the endpoint at an HTTP URL. Raises LedgerUnreachable for what is none."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise LedgerUnreachable(where=host or "--rpc", reason="not a URL of the form https://HOST[:PORT]")
        provider = AsyncHTTPProvider(url, exception_retry_configuration=None)
        provider.global_ccip_read_enabled = False  # or a contract could have us fetch pages of its choice
        return cls(host if port is None else f"{host}:{port}", provider)


class Endpoints:
    """All endpoints of one chain; the one that answered last is asked first."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, chain_id: int | None = None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self._endpoints = list(endpoints)
        self._chain_id = chain_id
        self._timeout_s = timeout_s

    @classmethod
    def of_urls(
        cls, urls: Sequence[str], *, chain_id: int | None = None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> "Endpoints":
        """Return endpoints at HTTP URLs. Raises LedgerUnreachable if there is none, or one that is no URL."""
        if not urls:
            raise LedgerUnreachable(where="--rpc", reason="no endpoint was given")
        return cls([Endpoint.of_url(url) for url in urls], chain_id=chain_id, timeout_s=timeout_s)

    async def chain_id(self) -> int:
        """Return the chain that all of them have to serve; without one given, the first one's that answers."""
        if self._chain_id is None:
            await self.ask(questions.chain_id)
        assert self._chain_id is not None
        return self._chain_id

    async def ask(self, question: Question[T]) -> T:
        """Return the first answer; where there is none, ask all of them once more.

        Raises LedgerUnreachable when no endpoint gives one, WrongChain when they all serve another chain, and what a
        revert stands for: Refused, or ContractReverted.
        """
        try:
            return await self._ask_each(question)
        except LedgerUnreachable:  # behind one URL are often many nodes, of which one lags or is busy
            await asyncio.sleep(PAUSE_S)
            return await self._ask_each(question)

    async def _ask_each(self, question: Question[T]) -> T:
        failures: list[str] = []
        wrong: list[WrongChain] = []
        for endpoint in tuple(self._endpoints):
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._check(endpoint)
                    answer = await question(endpoint.eth)
            except WrongChain as error:
                wrong.append(error)
                failures.append(f"{endpoint.name}: {error}")
            except LedgerError:
                raise
            except Exception as error:  # whatever web3 makes of what an endpoint sends
                if (reason := _revert_reason(error)) is not None:
                    raise contract.refusal(reason) from error
                failures.append(f"{endpoint.name}: {self._describe(error)}")
            else:
                if endpoint is not self._endpoints[0]:
                    self._endpoints.remove(endpoint)
                    self._endpoints.insert(0, endpoint)
                return answer
            endpoint.is_checked = False
        if len(wrong) == len(self._endpoints):
            raise wrong[0]
        where = ", ".join(endpoint.name for endpoint in self._endpoints)
        raise LedgerUnreachable(where=where, reason="; ".join(failures))

    async def close(self) -> None:
        """End all connections."""
        for endpoint in self._endpoints:
            if isinstance(provider := endpoint.provider, AsyncHTTPProvider):
                await provider.disconnect()

    async def _check(self, endpoint: Endpoint) -> None:
        """See before the first question, and after each failure, that it is the right chain."""
        if endpoint.is_checked:
            return
        served = await questions.chain_id(endpoint.eth)
        if self._chain_id is None:
            self._chain_id = served
        if served != self._chain_id:
            raise WrongChain(served=served, expected=self._chain_id)
        endpoint.is_checked = True

    def _describe(self, error: Exception) -> str:
        """Say what went wrong without the URL, which libraries like to put into their messages."""
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout_s:g} s"
        if isinstance(error, aiohttp.ClientResponseError):
            return f"HTTP status {error.status}"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"no connection ({error.os_error.strerror or type(error.os_error).__name__})"
        if isinstance(error, Web3RPCError):
            return f"it says: {_rpc_message(error)[:MOST_REASON_CHARS]}"
        return f"an answer that cannot be read ({type(error).__name__})"


def rpc_error(error: Web3RPCError) -> tuple[str, object]:
    """Return message and data of an endpoint's error."""
    response: Any = error.rpc_response or {}
    details = response.get("error") if isinstance(response, Mapping) else None
    if isinstance(details, Mapping):
        return str(details.get("message", "")), details.get("data")
    return error.message, None


def _rpc_message(error: Web3RPCError) -> str:
    return " ".join(rpc_error(error)[0].split())


def _revert_reason(error: Exception) -> str | None:
    if isinstance(error, ContractLogicError):
        return contract.revert_reason(error.message or "", error.data) or ""
    if isinstance(error, Web3RPCError):
        return contract.revert_reason(*rpc_error(error))
    return None
