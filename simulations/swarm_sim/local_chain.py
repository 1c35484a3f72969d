"""An Ethereum chain in this process: eth-tester's EVM behind JSON-RPC, with a mempool and reorganisations of its own.

For tests, and for swarms on one machine where anvil is not installed. It asks back what real nodes ask back (nonces,
replacements, fees, money), holds transactions when told to, forgets them, and takes blocks back. Reached in process
through `LocalProvider`, or over HTTP through `served`.
"""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from eth_account import Account as Signer
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes
from web3 import EthereumTesterProvider, Web3
from web3.middleware import combine_middleware
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_ledger.accounts import KEY_BYTES, Account
from swarm_ledger.recursion_limit import kept_recursion_limit

with kept_recursion_limit():
    from eth_tester import EthereumTester
    from eth_tester.exceptions import TransactionFailed

RICH: Final = tuple(Account(number.to_bytes(KEY_BYTES, "big")) for number in range(1, 11))  # each has a million coins
_REVERT_CODE: Final = 3  # as geth's
_ERROR_CODE: Final = -32000
_BAD_PARAMETERS: Final = -32602
_MOST_BODY_BYTES: Final = 1 << 20
_SHUTDOWN_POLL_S: Final = 0.02


class RpcError(Exception):
    """What a node answers instead of a result."""

    def __init__(self, message: str, code: int = _ERROR_CODE) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Waiting:
    digest: bytes
    raw: bytes
    max_fee: int
    tip: int


class LocalChain:
    """One chain. Each transaction gets a block at once unless `is_mining` is off; then `mine` makes them."""

    def __init__(self) -> None:
        self.is_mining = True
        self.is_reachable = True
        self.tells_what_waits = True  # some nodes count only what is mined
        self.least_fee = 0  # what transactions have to offer for one gas to get into a block
        self.requests: Counter[str] = Counter()  # how often each method was asked for
        self._tester = EthereumTester()
        provider = EthereumTesterProvider(self._tester)
        self._ask = combine_middleware(provider._middleware, Web3(provider), provider.make_request)
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._mined: dict[int, list[tuple[tuple[str, int], _Waiting]]] = {}  # by block

    @property
    def head(self) -> int:
        """The number of the last block."""
        return int(self._result("eth_blockNumber", []))

    @property
    def offers(self) -> list[int]:
        """What the transactions in the mempool offer for one gas, in the order of senders and nonces."""
        return [self._waiting[place].max_fee for place in sorted(self._waiting)]

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response to a JSON-RPC request."""
        response: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id")}
        try:
            response["result"] = self._answer(str(request.get("method")), request.get("params") or [])
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            response["error"] = {"code": _BAD_PARAMETERS, "message": f"{type(error).__name__}: {error}"}
        except RpcError as error:
            response["error"] = {"code": error.code, "message": str(error)}
        return response

    def mine(self, blocks: int = 1) -> None:
        """Make blocks; the first ones take what waits and pays enough, as long as there is any."""
        for _ in range(blocks):
            taken = self._take()
            for _, waiting in taken:
                self._tester.backend.send_raw_transaction(waiting.raw)
            self._tester.mine_block()
            self._mined[self.head] = taken

    def forget(self) -> None:
        """Empty the mempool, as nodes do that are short of memory."""
        self._waiting.clear()

    def reorganize(self, depth: int, *, keeps: bool = True) -> None:
        """Take the last blocks back; their transactions wait again, or are gone."""
        start = self.head - depth
        block = self._tester.get_block_by_number(start)
        self._tester.backend.revert_to_snapshot(bytes.fromhex(block["hash"][2:]))
        for number in range(start + 1, start + depth + 1):
            for place, waiting in self._mined.pop(number, []):
                if keeps:
                    self._waiting.setdefault(place, waiting)

    def wait(self, seconds: int) -> None:
        """Make a block that is so much later than the last one."""
        now_s = self._tester.get_block_by_number("latest")["timestamp"]
        self._tester.time_travel(now_s + seconds)

    def _answer(self, method: str, params: Sequence[Any]) -> Any:
        self.requests[method] += 1
        if not self.is_reachable:
            raise RpcError("service unavailable")
        if method == "eth_sendRawTransaction":
            return self._accept(bytes.fromhex(params[0].removeprefix("0x")))
        if method == "eth_getTransactionCount" and params[1] == "pending":
            return hex(self._next_nonce(params[0]) if self.tells_what_waits else self._nonce(params[0]))
        if method == "evm_mine":
            self.mine()
            return "0x0"
        return _as_json(self._result(method, params))

    def _accept(self, raw: bytes) -> str:
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        sender, nonce = str(Signer.recover_transaction(raw)), int(fields["nonce"])
        new = _Waiting(bytes(Web3.keccak(raw)), raw, int(fields["maxFeePerGas"]), int(fields["maxPriorityFeePerGas"]))
        if int(fields["chainId"]) != self._result("eth_chainId", []):
            raise RpcError("invalid chain id for signer")
        if nonce < self._nonce(sender):
            raise RpcError("nonce too low")
        old = self._waiting.get((sender, nonce))
        if old is not None:
            if old.digest == new.digest:
                raise RpcError("already known")
            if 10 * new.max_fee < 11 * old.max_fee or 10 * new.tip < 11 * old.tip:
                raise RpcError("replacement transaction underpriced")
        coins = int(self._result("eth_getBalance", [sender, "latest"]))
        if coins < int(fields["gas"]) * new.max_fee + int(fields["value"]):
            raise RpcError("insufficient funds for gas * price + value")
        self._waiting[sender, nonce] = new
        if self.is_mining:
            self.mine()
        return "0x" + new.digest.hex()

    def _take(self) -> list[tuple[tuple[str, int], _Waiting]]:
        """Return what goes into the next block: of each sender in the order of its nonces, without gaps."""
        least = max(self.least_fee, int(self._tester.get_block_by_number("pending")["base_fee_per_gas"]))
        taken = []
        for sender in sorted({sender for sender, _ in self._waiting}):
            nonce = self._nonce(sender)
            while (waiting := self._waiting.get((sender, nonce))) is not None and waiting.max_fee >= least:
                taken.append(((sender, nonce), self._waiting.pop((sender, nonce))))
                nonce += 1
        return taken

    def _nonce(self, sender: str) -> int:
        return int(self._result("eth_getTransactionCount", [sender, "latest"]))

    def _next_nonce(self, sender: str) -> int:
        nonce = self._nonce(sender)
        while (Web3.to_checksum_address(sender), nonce) in self._waiting:
            nonce += 1
        return nonce

    def _result(self, method: str, params: Sequence[Any]) -> Any:
        try:
            response = self._ask(RPCEndpoint(method), list(params))
        except TransactionFailed as error:
            raise RpcError(str(error.args[0]), _REVERT_CODE) from error
        except Exception as error:  # the EVM's many ways to say no
            raise RpcError(f"{type(error).__name__}: {error}") from error
        if "error" in response:
            raise RpcError(str(response["error"]))
        return response["result"]


class LocalProvider(AsyncJSONBaseProvider):
    """web3's way to a chain in this process; everything crosses it as JSON, as it would over HTTP."""

    def __init__(self, chain: LocalChain) -> None:
        super().__init__()
        self.chain = chain

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        request = json.loads(self.encode_rpc_request(method, params))
        return self.decode_rpc_response(json.dumps(self.chain.answer(request)).encode())


@contextlib.contextmanager
def served(chain: LocalChain) -> Iterator[str]:
    """Serve a chain on a free port of this machine; gives the URL."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= _MOST_BODY_BYTES:
                self.send_error(413)
                return
            with lock:
                body = json.dumps(chain.answer(json.loads(self.rfile.read(length)))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(_SHUTDOWN_POLL_S,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _as_json(value: Any) -> Any:
    """Return a result as JSON-RPC writes it: numbers and bytes in hexadecimal."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, Mapping):
        return {str(key): _as_json(each) for key, each in value.items()}
    return [_as_json(each) for each in value]
