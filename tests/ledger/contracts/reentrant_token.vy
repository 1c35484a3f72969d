# pragma version 0.4.3
# pragma evm-version cancun
"""
@notice
    An ERC-20 that calls the ledger back from inside a transfer, for one who has deposited before with this token as its
    payer: `aim` says into which function. What came of it stands in `succeeded`.
"""
interface Ledger:
    def deposit(amount: uint256): nonpayable
    def withdraw(amount: uint256, receiver: address): nonpayable

symbol: public(constant(String[8])) = "AGAIN"
decimals: public(constant(uint8)) = 6
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
ledger: Ledger
aimed_at: String[16]
busy: bool
succeeded: public(bool)
tried: public(bool)


@deploy
def __init__(supply: uint256):
    self.balanceOf[msg.sender] = supply
    self.balanceOf[self] = supply


@external
def aim(at: address, name: String[16]):
    self.ledger = Ledger(at)
    self.aimed_at = name


@external
def deposit_own(amount: uint256):
    """@notice Give this contract itself a balance in the ledger."""
    self.allowance[self][self.ledger.address] = max_value(uint256)
    extcall self.ledger.deposit(amount)


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    return True


@external
def transfer(to: address, amount: uint256) -> bool:
    self._call_back()
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    self._call_back()
    self.allowance[owner][msg.sender] -= amount
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount
    return True


@internal
def _call_back():
    if self.aimed_at == "" or self.busy:
        return
    self.busy = True
    self.tried = True
    data: Bytes[68] = b""
    if self.aimed_at == "deposit":
        data = abi_encode(convert(100, uint256), method_id=method_id("deposit(uint256)"))
    else:
        data = abi_encode(convert(100, uint256), self, method_id=method_id("withdraw(uint256,address)"))
    self.succeeded = raw_call(self.ledger.address, data, revert_on_failure=False)
    self.busy = False
