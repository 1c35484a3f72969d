# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title SwarmLedger: deposits and payment channels for GPU time
@license Apache-2.0
@notice
    Everybody has one free balance. A payer moves part of its own into a channel to one payee; vouchers, signed by the
    channel's session key, move it on to the payee's free balance. One contract counts in the chain's coin or in one
    ERC-20. Nobody owns it: there is no administrator, no fee and no way to change it.

    What holds at any time:
      - balances + what is left in open channels <= what the contract holds (equal for ordinary tokens);
      - 0 <= claimed <= allocated in each channel; claimed never falls; a closed channel stays closed for ever;
      - only the payer spends its balance, only the payee gains by a voucher, and what is left goes back to the payer.

    Reasons of reverts are the codes of `swarm_ledger.errors`: party, amount, funds, exists, no channel, signature,
    nothing to claim, not closing, early, closing. Beyond them: value (coins that do not match the amount), token (an
    ERC-20 that refuses, or takes more than it was told to).
@dev
    A channel is one storage slot: allocated (104 bits) | claimed (104) | closes_at (40) | closed (8). A slot is never
    zero again once it was used: that is the tombstone that keeps an id from being used twice.
    Only `deposit`, `deposit_open` and `withdraw` call out, and they share one lock, because deposits are credited by
    the difference of the contract's balances: an inner deposit would be counted twice.
"""
from ethereum.ercs import IERC20

struct Opening:
    payee: address
    signer: address  # session key that signs this channel's vouchers, and nothing else
    salt: uint256
    amount: uint256

struct Claim:
    payer: address
    payee: address
    signer: address
    salt: uint256
    cumulative: uint128
    r: bytes32
    vs: bytes32  # EIP-2098: parity << 255 | s

struct Channel:
    allocated: uint256
    claimed: uint256
    closes_at: uint256  # 0 unless a close was asked for
    closed: bool

# The first topic is whose money it is about, the second the channel, the third the other party of it: who looks for an
# account's history asks for it in the first and in the third place.
event Deposited:
    account: indexed(address)
    amount: uint256  # what was credited

event Opened:
    payer: indexed(address)
    channel: indexed(bytes32)
    payee: indexed(address)
    signer: address
    salt: uint256
    amount: uint256

event ToppedUp:
    payer: indexed(address)
    channel: indexed(bytes32)
    payee: indexed(address)
    amount: uint256

event Claimed:
    payee: indexed(address)
    channel: indexed(bytes32)
    payer: indexed(address)
    amount: uint256

event Closing:
    payer: indexed(address)
    channel: indexed(bytes32)
    payee: indexed(address)
    closes_at: uint256

event Closed:
    payer: indexed(address)
    channel: indexed(bytes32)
    payee: indexed(address)
    refunded: uint256

event Withdrawn:
    account: indexed(address)
    receiver: address
    amount: uint256

MOST_OPENINGS: constant(uint256) = 64
MOST_CLAIMS: constant(uint256) = 64
MOST_CHANNELS: constant(uint256) = 128

DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channel,uint128 cumulative)")
NAME: constant(bytes32) = keccak256("SwarmLedger")
VERSION: constant(bytes32) = keccak256("1")
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
S_MASK: constant(uint256) = 2**255 - 1

AMOUNT_MASK: constant(uint256) = 2**104 - 1
TIME_MASK: constant(uint256) = 2**40 - 1
CLAIMED_SHIFT: constant(uint256) = 104
CLOSES_AT_SHIFT: constant(uint256) = 208
CLOSED_SHIFT: constant(uint256) = 248
CLAIMED_MASK: constant(uint256) = AMOUNT_MASK << CLAIMED_SHIFT
CLOSED: constant(uint256) = 1 << CLOSED_SHIFT

token: public(immutable(address))  # the zero address: the chain's coin
close_delay: public(immutable(uint256))  # seconds between a payer's request and its finish
first_block: public(immutable(uint256))  # where to begin to look for events
CHAIN_ID: immutable(uint256)
DOMAIN: immutable(bytes32)

balance_of: public(HashMap[address, uint256])
slots: HashMap[bytes32, uint256]


@deploy
def __init__(_token: address, _close_delay: uint256):
    assert _close_delay <= 2**32  # so that no close lies beyond 40 bits
    token = _token
    close_delay = _close_delay
    first_block = block.number
    CHAIN_ID = chain.id
    DOMAIN = keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))


# -- what is read ------------------------------------------------------------------------------------------------------


@external
@view
def domain_separator() -> bytes32:
    """@notice The EIP-712 domain that vouchers are signed for."""
    return self._domain()


@external
@view
def channel_states(ids: DynArray[bytes32, MOST_CHANNELS]) -> DynArray[Channel, MOST_CHANNELS]:
    """@notice Many channels at once; all zero where there is none of that id."""
    found: DynArray[Channel, MOST_CHANNELS] = []
    for id: bytes32 in ids:
        slot: uint256 = self.slots[id]
        found.append(
            Channel(
                allocated=slot & AMOUNT_MASK,
                claimed=(slot >> CLAIMED_SHIFT) & AMOUNT_MASK,
                closes_at=(slot >> CLOSES_AT_SHIFT) & TIME_MASK,
                closed=slot >> CLOSED_SHIFT != 0,
            )
        )
    return found


# -- the payer's side --------------------------------------------------------------------------------------------------


@external
@payable
@nonreentrant
def deposit(amount: uint256):
    """@notice Add to the caller's balance; `amount` in coins comes along, in tokens it was approved before."""
    assert amount > 0, "amount"
    credited: uint256 = self._take(amount)
    self.balance_of[msg.sender] += credited


@external
@payable
@nonreentrant
def deposit_open(amount: uint256, openings: DynArray[Opening, MOST_OPENINGS]):
    """@notice Deposit (0: nothing) and open channels from the caller's balance: all of them, or none."""
    credited: uint256 = self._take(amount)
    balance: uint256 = self.balance_of[msg.sender] + credited
    total: uint256 = 0
    for opening: Opening in openings:
        assert opening.payee != empty(address), "party"
        assert opening.payee != msg.sender, "party"
        assert opening.signer != empty(address), "party"
        assert opening.amount != 0, "amount"
        assert opening.amount <= AMOUNT_MASK, "amount"
        # As `_id`, which would cost each opening a call.
        id: bytes32 = keccak256(abi_encode(msg.sender, opening.payee, opening.signer, opening.salt))
        assert self.slots[id] == 0, "exists"
        self.slots[id] = opening.amount
        total += opening.amount
        log Opened(
            payer=msg.sender,
            channel=id,
            payee=opening.payee,
            signer=opening.signer,
            salt=opening.salt,
            amount=opening.amount,
        )
    assert balance >= total, "funds"
    self.balance_of[msg.sender] = balance - total  # written once, and not at all where what comes is all used


@external
def top_up(payee: address, signer: address, salt: uint256, amount: uint256):
    """@notice Add to one of the caller's channels from its balance. Takes back a request to close."""
    id: bytes32 = self._id(msg.sender, payee, signer, salt)
    slot: uint256 = self._open_slot(id)
    assert amount > 0 and amount <= AMOUNT_MASK, "amount"
    allocated: uint256 = (slot & AMOUNT_MASK) + amount
    assert allocated <= AMOUNT_MASK, "amount"
    self._spend(amount)
    self.slots[id] = allocated | (slot & CLAIMED_MASK)
    log ToppedUp(payer=msg.sender, channel=id, payee=payee, amount=amount)


@external
def request_close(payee: address, signer: address, salt: uint256):
    """@notice Begin to close one of the caller's channels; its payee has `close_delay` seconds to redeem."""
    id: bytes32 = self._id(msg.sender, payee, signer, salt)
    slot: uint256 = self._open_slot(id)
    assert (slot >> CLOSES_AT_SHIFT) & TIME_MASK == 0, "closing"
    closes_at: uint256 = block.timestamp + close_delay
    self.slots[id] = slot | (closes_at << CLOSES_AT_SHIFT)
    log Closing(payer=msg.sender, channel=id, payee=payee, closes_at=closes_at)


# -- the payee's side --------------------------------------------------------------------------------------------------


@external
def redeem(claims: DynArray[Claim, MOST_CLAIMS]) -> uint256:
    """
    @notice
        Pay what vouchers are worth beyond what was paid before. Anybody may send them; each pays its own payee.
        Vouchers that are worth nothing now (older ones, of closed channels) are passed over, so that nobody stops a
        batch by redeeming one of it first. One above its channel's allocation pays what there is.
    @return What was paid in all.
    """
    domain: bytes32 = self._domain()
    total: uint256 = 0
    payee: address = empty(address)
    due: uint256 = 0  # to `payee`: claims of one payee in a row cost one write of its balance
    for claim: Claim in claims:
        paid: uint256 = self._claim(claim, domain)
        if claim.payee != payee:
            if due > 0:
                self.balance_of[payee] += due
            payee = claim.payee
            due = 0
        due = unsafe_add(due, paid)  # 64 claims of 104 bits do not overflow
        total = unsafe_add(total, paid)
    assert total > 0, "nothing to claim"
    if due > 0:
        self.balance_of[payee] += due
    return total


@external
def finish_close(payer: address, payee: address, signer: address, salt: uint256):
    """@notice Give what is left back to the payer: at any time by the payee, after the delay by anybody."""
    id: bytes32 = self._id(payer, payee, signer, salt)
    slot: uint256 = self._open_slot(id)
    if msg.sender != payee:
        closes_at: uint256 = (slot >> CLOSES_AT_SHIFT) & TIME_MASK
        assert closes_at != 0, "not closing"
        assert block.timestamp >= closes_at, "early"
    refunded: uint256 = (slot & AMOUNT_MASK) - ((slot >> CLAIMED_SHIFT) & AMOUNT_MASK)
    self.slots[id] = slot | CLOSED
    self.balance_of[payer] += refunded
    log Closed(payer=payer, channel=id, payee=payee, refunded=refunded)


@external
@nonreentrant
def withdraw(amount: uint256, receiver: address):
    """@notice Take from the caller's balance out of the contract."""
    assert receiver not in [empty(address), self], "party"
    assert amount > 0, "amount"
    self._spend(amount)
    log Withdrawn(account=msg.sender, receiver=receiver, amount=amount)
    if token == empty(address):
        raw_call(receiver, b"", value=amount)
    else:
        before: uint256 = staticcall IERC20(token).balanceOf(self)
        assert extcall IERC20(token).transfer(receiver, amount, default_return_value=True), "token"
        # A token that takes its fee on top would pay it with what belongs to others.
        assert before - staticcall IERC20(token).balanceOf(self) <= amount, "token"


# -- parts -------------------------------------------------------------------------------------------------------------


@internal
@view
def _domain() -> bytes32:
    if chain.id == CHAIN_ID:
        return DOMAIN
    return keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))  # after a split of the chain


@internal
@pure
def _id(payer: address, payee: address, signer: address, salt: uint256) -> bytes32:
    return keccak256(abi_encode(payer, payee, signer, salt))


@internal
@view
def _open_slot(id: bytes32) -> uint256:
    slot: uint256 = self.slots[id]
    assert slot != 0 and slot >> CLOSED_SHIFT == 0, "no channel"
    return slot


@internal
@payable
def _take(amount: uint256) -> uint256:
    """Take coins or tokens from the caller; returns what is to be credited for them."""
    credited: uint256 = amount
    if token == empty(address):
        assert msg.value == amount, "value"
    else:
        assert msg.value == 0, "value"
        if amount > 0:
            before: uint256 = staticcall IERC20(token).balanceOf(self)
            assert extcall IERC20(token).transferFrom(msg.sender, self, amount, default_return_value=True), "token"
            credited = staticcall IERC20(token).balanceOf(self) - before
    if amount > 0:
        log Deposited(account=msg.sender, amount=credited)
    return credited


@internal
def _spend(amount: uint256):
    balance: uint256 = self.balance_of[msg.sender]
    assert balance >= amount, "funds"
    self.balance_of[msg.sender] = balance - amount


@internal
def _claim(claim: Claim, domain: bytes32) -> uint256:
    # As `_id`, which would cost each claim a call.
    id: bytes32 = keccak256(abi_encode(claim.payer, claim.payee, claim.signer, claim.salt))
    digest: bytes32 = keccak256(
        concat(x"1901", domain, keccak256(abi_encode(VOUCHER_TYPE, id, claim.cumulative)))
    )
    vs: uint256 = convert(claim.vs, uint256)
    s: uint256 = vs & S_MASK
    assert s <= HALF_ORDER, "signature"  # EIP-2: its twin would be a second signature of the same
    signer: address = ecrecover(digest, unsafe_add(vs >> 255, 27), convert(claim.r, uint256), s)
    assert signer != empty(address) and signer == claim.signer, "signature"

    slot: uint256 = self.slots[id]
    if slot == 0 or slot >> CLOSED_SHIFT != 0:
        return 0
    claimed: uint256 = (slot >> CLAIMED_SHIFT) & AMOUNT_MASK
    reached: uint256 = min(convert(claim.cumulative, uint256), slot & AMOUNT_MASK)
    if reached <= claimed:
        return 0
    self.slots[id] = (slot & ~CLAIMED_MASK) | (reached << CLAIMED_SHIFT)
    paid: uint256 = unsafe_sub(reached, claimed)
    log Claimed(payee=claim.payee, channel=id, payer=claim.payer, amount=paid)
    return paid
