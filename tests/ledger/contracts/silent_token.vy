# pragma version 0.4.3
# pragma evm-version cancun
"""
@notice
    An ERC-20 whose transfers return nothing, whose symbol is bytes32, and which takes an allowance only when there was
    none: each the habit of a token that is worth billions.
"""

symbol: public(constant(bytes32)) = 0x53494c454e540000000000000000000000000000000000000000000000000000
decimals: public(constant(uint8)) = 6
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])


@deploy
def __init__(supply: uint256):
    self.balanceOf[msg.sender] = supply


@external
def approve(spender: address, amount: uint256):
    assert amount == 0 or self.allowance[msg.sender][spender] == 0
    self.allowance[msg.sender][spender] = amount


@external
def transfer(to: address, amount: uint256):
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount


@external
def transferFrom(owner: address, to: address, amount: uint256):
    self.allowance[owner][msg.sender] -= amount
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount
