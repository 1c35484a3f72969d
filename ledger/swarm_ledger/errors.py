"""Everything that can go wrong with money, and what the person who meets it should do.

    LedgerError
    ├── Refused                 the ledger's own verdicts; the contract and the bank give the same ones
    │   ├── BadParty            a payee or signer that cannot be one
    │   ├── BadAmount           nothing, or more than a channel can hold
    │   ├── InsufficientFunds   a free balance that is too small
    │   ├── ChannelExists       an id that was used before; ids are never reused
    │   ├── NoChannel           no channel of that id, or one that was closed
    │   ├── BadSignature        not by the channel's signer, over other values, or in its malleable form
    │   ├── NothingToClaim      vouchers that were all redeemed before
    │   ├── NotClosing          a payer may finish only what it asked to close
    │   ├── TooEarly            before the delay of a close has passed
    │   └── AlreadyClosing      a close that was asked for before
    ├── BadQuote                a price list that is no such thing, or has expired
    ├── BadBinding              an account that does not belong to the node that names it
    ├── BadSection              bytes that were not sealed for this hop
    ├── PaymentMissing          a step that is not paid for
    ├── AllocationTooSmall      a channel that holds too little to begin with
    ├── OverBudget              a step that would cost more than the person allowed
    ├── Disputed                a hop counts more than was sent to it
    ├── BankRefused             the bank refuses a request as a whole: its signature, its size, its age
    ├── LedgerUnreachable       no answer from the bank, or from any endpoint of the chain
    ├── WrongChain              endpoints that serve another chain than they should
    ├── NoSuchLedger            an address where no ledger of this release is
    ├── ContractReverted        a transaction that the contract or its token refuses for another reason
    ├── NoGasMoney              too little of the chain's coin to pay for a transaction
    ├── GasTooExpensive         gas beyond the operator's limit
    ├── NotConfirmed            a transaction that did not get through in time, and still may
    ├── BadOption               an option of a program that cannot be used so
    ├── MissingPackage          a part of the installation that is not there
    ├── NoStartingCredit        the bank gives this client none, or no more
    ├── OnlyMinted              a bank takes no deposits: its operator mints
    ├── BadKeyFile              a key that cannot be read, or with another password
    ├── StoreInUse              a file of money that another process has open
    └── BrokenStore             a file of money that cannot be used

Leaves are ordinary dataclasses, not frozen ones: contextlib assigns `__traceback__`. A Refused travels as its `code`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


class LedgerError(Exception, ABC):
    """A failure that a person can understand and act on."""

    @abstractmethod
    def remedy(self) -> str:
        """Say in one sentence what the reader can do about it."""


class Refused(LedgerError):
    """What a ledger refuses; nothing has changed. `code` is part of the bank's protocol and the contract's reverts."""

    code: ClassVar[str] = "refused"


@dataclass(eq=False)
class BadParty(Refused):
    code: ClassVar[str] = "party"

    def __str__(self) -> str:
        return "a channel needs a payee that is not its payer, and a signer"

    def remedy(self) -> str:
        return "pay somebody else than yourself"


@dataclass(eq=False)
class BadAmount(Refused):
    code: ClassVar[str] = "amount"

    def __str__(self) -> str:
        return "an amount that is nothing, or more than a channel or balance can hold"

    def remedy(self) -> str:
        return "use a positive amount below 2^104 of the smallest unit"


@dataclass(eq=False)
class InsufficientFunds(Refused):
    code: ClassVar[str] = "funds"

    def __str__(self) -> str:
        return "the free balance is too small"

    def remedy(self) -> str:
        return "deposit more, or close channels that are not used: swarm-ledger deposit, swarm-ledger close"


@dataclass(eq=False)
class ChannelExists(Refused):
    code: ClassVar[str] = "exists"

    def __str__(self) -> str:
        return "a channel of these parties and this salt was opened before"

    def remedy(self) -> str:
        return "top the channel up, or open one with another salt"


@dataclass(eq=False)
class NoChannel(Refused):
    code: ClassVar[str] = "no channel"

    def __str__(self) -> str:
        return "there is no such channel, or it was closed"

    def remedy(self) -> str:
        return "open a channel first: swarm-ledger channels shows those that are open"


@dataclass(eq=False)
class BadSignature(Refused):
    code: ClassVar[str] = "signature"

    def __str__(self) -> str:
        return "not signed by the channel's signer over exactly this channel, amount and ledger"

    def remedy(self) -> str:
        return "a voucher counts only as it was signed, on the ledger that it was signed for"


@dataclass(eq=False)
class NothingToClaim(Refused):
    code: ClassVar[str] = "nothing to claim"

    def __str__(self) -> str:
        return "these vouchers are redeemed already"

    def remedy(self) -> str:
        return "nothing needs to be done"


@dataclass(eq=False)
class NotClosing(Refused):
    code: ClassVar[str] = "not closing"

    def __str__(self) -> str:
        return "nobody has asked to close this channel"

    def remedy(self) -> str:
        return "ask to close it first, and finish after the delay"


@dataclass(eq=False)
class TooEarly(Refused):
    code: ClassVar[str] = "early"

    def __str__(self) -> str:
        return "the delay of this close has not passed: its payee may still redeem"

    def remedy(self) -> str:
        return "finish later; the payee can close at once"


@dataclass(eq=False)
class AlreadyClosing(Refused):
    code: ClassVar[str] = "closing"

    def __str__(self) -> str:
        return "the close of this channel was asked for before"

    def remedy(self) -> str:
        return "wait for its delay, then finish it"


REFUSALS: dict[str, type[Refused]] = {
    kind.code: kind
    for kind in (
        BadParty,
        BadAmount,
        InsufficientFunds,
        ChannelExists,
        NoChannel,
        BadSignature,
        NothingToClaim,
        NotClosing,
        TooEarly,
        AlreadyClosing,
    )
}


@dataclass(eq=False)
class BadQuote(LedgerError):
    """A price list that cannot be used."""

    reason: str

    def __str__(self) -> str:
        return f"bad quote: {self.reason}"

    def remedy(self) -> str:
        return "look the node's record up again, or use another node"


@dataclass(eq=False)
class BadBinding(LedgerError):
    """An account that is not the node's own."""

    reason: str

    def __str__(self) -> str:
        return f"the node's account cannot be trusted: {self.reason}"

    def remedy(self) -> str:
        return "do not pay it: use another node"


@dataclass(eq=False)
class BadSection(LedgerError):
    """Sealed bytes that this side cannot open."""

    reason: str

    def __str__(self) -> str:
        return f"bad sealed section: {self.reason}"

    def remedy(self) -> str:
        return "seal it with the key of the hop's present quote"


@dataclass(eq=False)
class PaymentMissing(LedgerError):
    """A node's refusal to compute a step on credit; amounts in the smallest unit of its quote's currency."""

    earned: int
    cost: int
    paid: int
    window: int
    allocated: int

    @property
    def needed(self) -> int:
        """The cumulative of the voucher that would pay for it."""
        return self.earned + self.cost - self.window

    def __str__(self) -> str:
        if self.earned + self.cost > self.allocated:
            return f"the step brings the channel to {self.earned + self.cost}, it holds {self.allocated}"
        missing = self.needed - self.paid
        return f"{missing} more has to be paid: {self.earned} earned, the step {self.cost}, paid {self.paid}"

    def remedy(self) -> str:
        return "send a voucher for what was delivered, or top the channel up"


@dataclass(eq=False)
class AllocationTooSmall(LedgerError):
    """A channel with less left than a node begins a session for."""

    left: int
    least: int

    def __str__(self) -> str:
        return f"{self.left} left in the channel, at least {self.least} needed"

    def remedy(self) -> str:
        return "top the channel up, or deposit more"


@dataclass(eq=False)
class OverBudget(LedgerError):
    """The next step would bring the spending above what was allowed."""

    spent: str
    limit: str
    what: str  # of the request, of the day

    def __str__(self) -> str:
        return f"{self.spent} spent, the budget {self.what} is {self.limit}"

    def remedy(self) -> str:
        return "raise the budget, or ask for fewer tokens"


@dataclass(eq=False)
class Disputed(LedgerError):
    """A hop wants to be paid for more than was sent to it."""

    peer: str
    claimed: int
    counted: int

    def __str__(self) -> str:
        return f"node {self.peer[-8:]} counts {self.claimed}, this client {self.counted}"

    def remedy(self) -> str:
        return "nothing was signed beyond the own count; use another node"


@dataclass(eq=False)
class BankRefused(LedgerError):
    """A request that the bank does not take."""

    reason: str

    def __str__(self) -> str:
        return f"the bank refuses the request: {self.reason}"

    def remedy(self) -> str:
        return "check the clock of this machine and the bank's key"


@dataclass(eq=False)
class LedgerUnreachable(LedgerError):
    """The ledger does not answer."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"the ledger at {self.where} cannot be reached: {self.reason}"

    def remedy(self) -> str:
        return "check that it runs and try again; vouchers are kept and lose nothing by waiting"


@dataclass(eq=False)
class WrongChain(LedgerError):
    """Endpoints of another chain: nothing was signed."""

    served: int
    expected: int

    def __str__(self) -> str:
        return f"chain {self.served} instead of {self.expected}"

    def remedy(self) -> str:
        return "give endpoints of the chain that the contract is on, or another --chain-id"


@dataclass(eq=False)
class NoSuchLedger(LedgerError):
    """An address that money should not be sent to."""

    contract: str
    chain_id: int
    reason: str

    def __str__(self) -> str:
        return f"{self.contract} on chain {self.chain_id} is no ledger: {self.reason}"

    def remedy(self) -> str:
        return "check the address and the chain; swarm-ledger deploy makes a new contract"


@dataclass(eq=False)
class ContractReverted(LedgerError):
    """A refusal without one of the ledger's codes: a token's, or one by a contract of another release."""

    reason: str
    transaction: str = ""

    def __str__(self) -> str:
        where = f" (transaction {self.transaction})" if self.transaction else ""
        return f"the contract refuses: {self.reason or 'it gives no reason'}{where}"

    def remedy(self) -> str:
        return "for a token, check that the account has enough of it and that it can be transferred"


@dataclass(eq=False)
class NoGasMoney(LedgerError):
    """An account that cannot pay for its transactions; in the coin's smallest unit."""

    address: str
    balance: int
    needed: int

    def __str__(self) -> str:
        return f"{self.address} has {self.balance} wei, the transaction may need {self.needed}"

    def remedy(self) -> str:
        return f"send some of the chain's coin to {self.address}"


@dataclass(eq=False)
class GasTooExpensive(LedgerError):
    """A price of gas beyond what the operator pays; in wei."""

    price: int
    most: int

    def __str__(self) -> str:
        return f"gas costs {self.price} wei at the moment, the limit is {self.most}"

    def remedy(self) -> str:
        return "wait until gas is cheaper, or raise --max-gas-price; what was sent already may still happen"


@dataclass(eq=False)
class NotConfirmed(LedgerError):
    """A transaction that was sent and does not count yet."""

    transaction: str
    waited_s: float

    def __str__(self) -> str:
        return f"transaction {self.transaction} was not confirmed within {self.waited_s:.0f} s"

    def remedy(self) -> str:
        return "it may still be: look it up before sending it again"


@dataclass(eq=False)
class BadOption(LedgerError):
    """An option that is missing, or that says something impossible."""

    option: str
    reason: str

    def __str__(self) -> str:
        return f"{self.option}: {self.reason}"

    def remedy(self) -> str:
        return "see --help"


@dataclass(eq=False)
class MissingPackage(LedgerError):
    """Something that is not installed."""

    package: str
    extra: str

    def __str__(self) -> str:
        return f"{self.package} is not installed"

    def remedy(self) -> str:
        return f"pip install 'swarm-inference[{self.extra}]'"


@dataclass(eq=False)
class NoStartingCredit(LedgerError):
    """The bank gives no starting credit."""

    reason: str

    def __str__(self) -> str:
        return f"no starting credit: {self.reason}"

    def remedy(self) -> str:
        return "ask the bank's operator for credit, or earn it by serving blocks"


@dataclass(eq=False)
class OnlyMinted(LedgerError):
    """A deposit at a bank whose credits nobody can buy."""

    def __str__(self) -> str:
        return "this ledger takes no deposits: its credits are minted by its operator"

    def remedy(self) -> str:
        return "ask the bank's operator for credit, or earn it by serving blocks"


@dataclass(eq=False)
class BadKeyFile(LedgerError):
    """A key file that cannot be used."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"

    def remedy(self) -> str:
        return "check the file's owner and mode (0600), and the password"


@dataclass(eq=False)
class StoreInUse(LedgerError):
    """A store that another process writes: vouchers of a channel have one writer."""

    file: str

    def __str__(self) -> str:
        return f"{self.file}: another process uses it"

    def remedy(self) -> str:
        return "end the other process, or use another data directory"


@dataclass(eq=False)
class BrokenStore(LedgerError):
    """A store of money that cannot be read or written."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"

    def remedy(self) -> str:
        return "free disk space or fix the file's permissions; vouchers in it are money, so do not delete it"
