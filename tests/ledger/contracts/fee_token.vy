# pragma version 0.4.3
# pragma evm-version cancun
"""
@notice
    An ERC-20 that burns 1 % of each transfer: of what the receiver gets, or with `on_top` in addition from the sender.
    `rebase` changes all that one holder has, as tokens do that pay interest.
"""

symbol: public(constant(String[8])) = "FEE"
decimals: public(constant(uint8)) = 6
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
on_top: public(bool)


@deploy
def __init__(supply: uint256):
    self.balanceOf[msg.sender] = supply


@external
def charge_on_top():
    self.on_top = True


@external
def rebase(holder: address, percent: uint256):
    self.balanceOf[holder] = self.balanceOf[holder] * percent // 100


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    return True


@external
def transfer(to: address, amount: uint256) -> bool:
    self._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    self.allowance[owner][msg.sender] -= amount
    self._move(owner, to, amount)
    return True


@internal
def _move(owner: address, to: address, amount: uint256):
    fee: uint256 = amount // 100
    if self.on_top:
        self.balanceOf[owner] -= amount + fee
        self.balanceOf[to] += amount
    else:
        self.balanceOf[owner] -= amount
        self.balanceOf[to] += amount - fee
