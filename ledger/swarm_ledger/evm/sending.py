"""Transactions of one account, each until it counts.

    Sender      nonces, fees and what has been sent and is not final
      _Sent     one nonce: what is to happen, and every transaction that was signed for it

Nonces are given out here, so several transactions are in flight at once. Whoever waits for one looks after all of them,
in rounds that they share: one that is stuck is signed again under its nonce with a higher fee; one that a
reorganisation took back is sent again; a nonce below ours that nothing is known of (another process died, or a mempool
forgot it) is filled with a transaction that does nothing; and one whose nonce another process has used is sent again
under a new one once that is certain. Signatures hold for one chain (EIP-155).

Called by `evm_ledger.py` and `deploying.py`. An account's transactions should come from one Sender; two get along, but
wait for each other.
"""

import asyncio
import enum
import logging
from dataclasses import dataclass, field
from typing import Any, Final

from eth_account import Account as Signer
from web3.eth import AsyncEth
from web3.exceptions import Web3RPCError

from swarm_ledger.accounts import Account, address_text
from swarm_ledger.errors import GasTooExpensive, LedgerError, LedgerUnreachable, NoGasMoney, NotConfirmed
from swarm_ledger.evm import contract, questions
from swarm_ledger.evm.confirmations import confirmed_block
from swarm_ledger.evm.endpoints import Endpoints, rpc_error
from swarm_ledger.evm.fees import GWEI, Fee, GasPrice, first_fee, higher_fee
from swarm_ledger.evm.questions import Call, Question, Receipt

logger = logging.getLogger(__name__)

ROUNDS_UNTIL_LOST: Final = 3  # without a receipt although the nonce was used: nodes behind one URL may lag
GAS_SPARE_PARTS: Final = 5  # an estimate is exceeded when the state changes before it runs
PLAIN_TRANSFER_GAS: Final = 21_000
MOST_FILLED: Final = 16  # nonces at once: each costs a transaction


@dataclass(frozen=True, slots=True)
class Sending:
    """How patient and how generous an account is."""

    confirmations: int = 3  # blocks until something counts, its own among them
    most_fee: int = 200 * GWEI  # wei for one gas
    most_gas: int = 6_000_000  # of one transaction, whatever an endpoint estimates
    poll_s: float = 2.0
    stuck_after_s: float = 60.0
    give_up_after_s: float = 900.0


class Verdict(enum.Enum):
    """What a node says to a transaction that it is given."""

    TAKEN = enum.auto()
    NONCE_USED = enum.auto()
    OUTBID = enum.auto()  # another transaction waits under this nonce, and pays as much
    TOO_CHEAP = enum.auto()
    NO_MONEY = enum.auto()


_SAYINGS: Final = (  # of geth, reth, nethermind, besu, erigon and anvil, in lower case
    ("already known", Verdict.TAKEN),
    ("alreadyknown", Verdict.TAKEN),
    ("already imported", Verdict.TAKEN),
    ("nonce too low", Verdict.NONCE_USED),
    ("oldnonce", Verdict.NONCE_USED),
    ("replacement", Verdict.OUTBID),
    ("replacementnotallowed", Verdict.OUTBID),
    ("underpriced", Verdict.TOO_CHEAP),
    ("feetoolow", Verdict.TOO_CHEAP),
    ("less than block base fee", Verdict.TOO_CHEAP),
    ("below the current block base fee", Verdict.TOO_CHEAP),
    ("insufficient funds", Verdict.NO_MONEY),
    ("insufficientfunds", Verdict.NO_MONEY),
    ("upfront cost exceeds", Verdict.NO_MONEY),
)


def verdict_on(message: str) -> Verdict | None:
    """Return what a node's error means; None for trouble of its own."""
    said = message.lower()
    return next((verdict for saying, verdict in _SAYINGS if saying in said), None)


@dataclass(slots=True)
class _Sent:
    nonce: int
    call: Call
    gas: int
    fee: Fee
    raws: dict[bytes, bytes] = field(default_factory=dict)  # by hash, the newest last
    sent_at_s: float = 0.0
    is_taken: bool = False  # by some node, so that it may be mined
    block: int | None = None  # where it was last seen
    rounds_without: int = 0  # that its nonce was used and none of its transactions was found
    receipt: Receipt | None = None  # final
    is_lost: bool = False  # another transaction has its nonce for good
    is_capped: bool = False  # stuck, and the operator's limit allows no higher fee

    @property
    def is_done(self) -> bool:
        return self.receipt is not None or self.is_lost

    @property
    def transaction(self) -> str:
        return "0x" + next(reversed(self.raws)).hex() if self.raws else ""


class Sender:
    """Sends the transactions of one account."""

    def __init__(self, endpoints: Endpoints, account: Account, chain_id: int, sending: Sending) -> None:
        self._endpoints = endpoints
        self._account = account
        self._chain_id = chain_id
        self._sending = sending
        self._from = address_text(account.address)
        self._lock = asyncio.Lock()
        self._next_nonce = 0
        self._sent: dict[int, _Sent] = {}
        self._front = (-1, 0.0)  # the first nonce that is not mined, and since when it is that one
        self._looked_at_s = float("-inf")

    async def send(self, call: Call) -> Receipt:
        """Do something on the chain, and return when it has enough confirmations.

        Raises Refused and ContractReverted, mostly before anything was sent; NoGasMoney, GasTooExpensive; and
        NotConfirmed or LedgerUnreachable after `give_up_after_s`, when it may still happen.
        """
        deadline_s = _now_s() + self._sending.give_up_after_s
        while True:
            sent = await self._begin(call)
            await self._wait(sent, deadline_s)
            if sent.receipt is not None:
                return await self._succeeded(sent.call, sent.receipt)
            logger.warning("another process uses this account: sending again under a new nonce")

    @property
    def waiting(self) -> int:
        """How many nonces are not final."""
        return len(self._sent)

    async def gas_price(self) -> GasPrice:
        """Return what the chain asks for."""
        return await self._endpoints.ask(questions.gas_price)

    # -- one transaction -----------------------------------------------------------------------------------------------

    async def _begin(self, call: Call) -> _Sent:
        async with self._lock:
            fee = first_fee(await self.gas_price(), self._sending.most_fee)
            await self._check_money(PLAIN_TRANSFER_GAS * fee.max_fee + call.value)  # estimates need it, too
            gas = await self._endpoints.ask(questions.gas(self._account.address, call))
            gas = min(gas + gas // GAS_SPARE_PARTS, self._sending.most_gas)
            await self._check_money(gas * fee.max_fee + call.value)
            counted = await self._endpoints.ask(questions.next_nonce(self._account.address))
            nonce = max(self._next_nonce, counted)
            while True:
                sent = _Sent(nonce, call, gas, fee)
                self._sent[nonce] = sent
                self._next_nonce = nonce + 1
                try:
                    verdict = await self._post(sent)
                except LedgerUnreachable:  # it may be out, or not: the rounds find out
                    return sent
                except LedgerError:
                    self._forget(nonce)
                    raise
                if verdict is Verdict.NO_MONEY:
                    self._forget(nonce)
                    raise await self._no_money(gas * fee.max_fee + call.value)
                if verdict is not Verdict.OUTBID:
                    return sent
                del self._sent[nonce]  # another process has sent it a moment ago
                nonce += 1

    def _forget(self, nonce: int) -> None:
        del self._sent[nonce]
        self._next_nonce = nonce

    async def _wait(self, sent: _Sent, deadline_s: float) -> None:
        began_s = _now_s()
        while True:
            trouble: LedgerUnreachable | None = None
            try:
                async with self._lock:
                    await self._round()
            except LedgerUnreachable as error:
                trouble = error
            if sent.is_done:
                return
            if _now_s() >= deadline_s:
                if trouble is not None:
                    raise trouble
                if sent.is_capped:
                    price = await self.gas_price()
                    raise GasTooExpensive(price=price.base_fee + price.tip, most=self._sending.most_fee)
                raise NotConfirmed(transaction=sent.transaction, waited_s=_now_s() - began_s)
            await asyncio.sleep(self._sending.poll_s)

    async def _succeeded(self, call: Call, receipt: Receipt) -> Receipt:
        if receipt.succeeded:
            return receipt
        # It was fine when it was estimated: asked again on the state that it met, the contract says why.
        await self._endpoints.ask(questions.result(call, bytes, receipt.block, self._account.address))
        raise contract.refusal("no reason given", receipt.transaction)

    # -- all that wait -------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """See what has become of everything that was sent; do what is to be done about it."""
        if _now_s() < self._looked_at_s + self._sending.poll_s:
            return
        head = await self._endpoints.ask(questions.head)
        mined = await self._endpoints.ask(questions.mined_nonces(self._account.address))
        if mined != self._front[0]:
            self._front = (mined, _now_s())
        for nonce in sorted(self._sent):
            sent = self._sent[nonce]
            if nonce < mined:
                await self._look_for(sent, head)
            else:
                await self._push(sent, is_first=nonce == mined)
            if sent.is_done:
                del self._sent[nonce]
        await self._fill_gap(mined)
        self._looked_at_s = _now_s()

    async def _look_for(self, sent: _Sent, head: int) -> None:
        for digest in reversed(sent.raws):
            found = await self._endpoints.ask(questions.receipt(digest))
            if found is not None:
                sent.rounds_without = 0
                sent.block = found.block
                if head - found.block + 1 >= self._sending.confirmations:
                    sent.receipt = found
                return
        sent.rounds_without += 1
        block = confirmed_block(head, self._sending.confirmations)
        if sent.rounds_without >= ROUNDS_UNTIL_LOST and block >= 0:
            final = await self._endpoints.ask(questions.mined_nonces(self._account.address, block))
            sent.is_lost = final > sent.nonce

    async def _push(self, sent: _Sent, *, is_first: bool) -> None:
        """Send what is not mined again: as it was, or with a higher fee where it holds up the others."""
        sent.rounds_without = 0
        since_s = max(sent.sent_at_s, self._front[1])
        if sent.block is not None:
            logger.warning("block %d with transaction %s was taken back: sent again", sent.block, sent.transaction)
            sent.block = None
        elif sent.is_taken and _now_s() < since_s + self._sending.stuck_after_s:
            return
        elif sent.is_taken and is_first:
            fee = higher_fee(sent.fee, await self.gas_price(), self._sending.most_fee)
            sent.is_capped = fee is None
            if fee is not None:
                logger.info("transaction %s is stuck: now %d wei for one gas", sent.transaction, fee.max_fee)
                sent.fee = fee
        await self._post(sent)

    async def _fill_gap(self, mined: int) -> None:
        if not self._sent or (first := min(self._sent)) <= mined:
            return
        if _now_s() < self._front[1] + self._sending.stuck_after_s:
            return
        try:
            fee = first_fee(await self.gas_price(), self._sending.most_fee)
        except GasTooExpensive:
            return
        logger.warning("nonces %d to %d are missing or stuck: filled with empty transactions", mined, first - 1)
        nothing = Call(self._account.address)
        for nonce in range(mined, min(first, mined + MOST_FILLED)):
            self._sent[nonce] = _Sent(nonce, nothing, PLAIN_TRANSFER_GAS, fee)
            await self._post(self._sent[nonce])

    async def _post(self, sent: _Sent) -> Verdict:
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": sent.nonce,
            "gas": sent.gas,
            "maxFeePerGas": sent.fee.max_fee,
            "maxPriorityFeePerGas": sent.fee.tip,
            "value": sent.call.value,
            "data": sent.call.data,
            "to": b"" if sent.call.to is None else sent.call.to,
        }
        signed = Signer.sign_transaction(fields, self._account.secret)
        raw = bytes(signed.raw_transaction)
        sent.raws[bytes(signed.hash)] = raw
        sent.sent_at_s = _now_s()
        verdict = await self._endpoints.ask(_posting(raw))
        # One that is too cheap counts as taken, too: it is raised if waiting does not help.
        sent.is_taken |= verdict in (Verdict.TAKEN, Verdict.TOO_CHEAP, Verdict.OUTBID)
        return verdict

    # -- money for gas -------------------------------------------------------------------------------------------------

    async def _check_money(self, needed: int) -> None:
        if await self.coins() < needed:
            raise await self._no_money(needed)

    async def _no_money(self, needed: int) -> NoGasMoney:
        return NoGasMoney(address=self._from, balance=await self.coins(), needed=needed)

    async def coins(self) -> int:
        """Return what the account has of the chain's coin, outside the ledger."""
        return await self._endpoints.ask(questions.coins(self._account.address))


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _posting(raw: bytes) -> Question[Verdict]:
    async def question(eth: AsyncEth) -> Verdict:
        try:
            await eth.send_raw_transaction(raw)
        except Web3RPCError as error:
            if (verdict := verdict_on(rpc_error(error)[0])) is not None:
                return verdict
            raise  # trouble of this endpoint: the next one is asked
        return Verdict.TAKEN

    return question
