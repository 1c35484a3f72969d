"""The ledger on an Ethereum chain: the contract `channels.vy`, through web3.

    contract.py       what is said to the contract and what it answers, as bytes; pure
    fees.py           what a transaction may cost, and how a stuck one gets dearer; pure
    confirmations.py  what counts of a chain that may still change its mind; pure
    questions.py      what endpoints are asked, with their answers checked
    endpoints.py      several RPC endpoints behind one question
    sending.py        transactions of one account, each until it counts
    event_log.py      the contract's events of one account
    evm_ledger.py     the `Ledger` made of these
    deploying.py      a new contract

Imported only where a chain is used: web3 takes two seconds and 60 MB.
"""

import sys

# Where eth-tester is installed, web3 imports it, and py-evm raises Python's limit of recursion a hundredfold: whatever
# recurses for ever then (a stranger's chat template, for one) would end the process and not the call.
_limit = sys.getrecursionlimit()
try:
    import web3 as web3
finally:
    sys.setrecursionlimit(_limit)
