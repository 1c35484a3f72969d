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

from swarm_ledger.recursion_limit import kept_recursion_limit

with kept_recursion_limit():
    import web3 as web3
