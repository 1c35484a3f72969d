"""Real processes, killed in the middle: what they said before they died is still true when they start again."""

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from swarm_ledger.bank import Bank
from swarm_ledger.bank_messages import RedeemBody, encode, raw_claim, read_reply, write_request
from swarm_ledger.bank_service import BankService
from swarm_ledger.channels import VoucherDigests
from swarm_ledger.client_store import ClientStore
from swarm_ledger.earning import Earnings
from swarm_ledger.ledger import Opening
from swarm_ledger.node_store import NodeStore
from tests.ledger.histories import KEYS, START_S
from tests.ledger.parties import BANK, HERE, PAYEES, claim_of, key_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes as POSIX does")

KEY = KEYS[0]
CHANNELS = 3

# Every process below tells what it has done, a line at a time, and is killed after some of them.
NODE = """
    from swarm_ledger.channels import ChannelState, VoucherDigests
    from swarm_ledger.earning import Earnings
    from swarm_ledger.node_store import NodeStore
    from tests.ledger.parties import HERE, PAYEES, SIGNERS, key_of

    digests = VoucherDigests(HERE)
    store, earnings = NodeStore(file, HERE, PAYEES[0].address), Earnings(digests, PAYEES[0].address)
    store.restore(earnings)
    for cumulative in range(1 + max([0, *(each.best.cumulative for each in earnings.channels.values())]), 100_000):
        for salt in range(3):
            key = key_of(salt=salt)
            channel = earnings.learn(key, ChannelState(10**9, 0))
            channel.best = digests.sign(key.id, cumulative, SIGNERS[0])
            earnings.unsaved[key.id] = channel
        store.save(earnings, most_at_risk=50)
        print(cumulative, flush=True)
"""
CLIENT = """
    from swarm_ledger.client_store import ClientStore, Raise
    from tests.ledger.parties import HERE, SIGNERS, key_of

    store = ClientStore(file)
    channels = store.channels(HERE) or [store.add(key_of(), SIGNERS[0], HERE)]
    channel = channels[0]
    store.allocate(channel, 10**6)
    for cumulative in range(channel.ceiling + 1, 10**6, 997):
        store.raise_ceilings([Raise(channel, cumulative)], day=1, currency="credits", limit=900_000)
        channel.sent = cumulative
        print(channel.sign(cumulative).cumulative, flush=True)
        if cumulative % 5 == 0:
            store.put_away([channel])
"""
BANK_PROCESS = """
    from swarm_ledger.bank import Bank
    from swarm_ledger.bank_service import BankService
    from tests.ledger.histories import START_S
    from tests.ledger.parties import BANK

    service = BankService(Bank(file, BANK.address), BANK, most_per_minute=10**9)
    for line in sys.stdin:
        reply = service.handle("redeem", bytes.fromhex(line), origin="test", now_s=START_S)
        print(reply.hex(), flush=True)
"""


def started(code: str, file: Path) -> "subprocess.Popen[str]":
    head = f"import sys\nfrom pathlib import Path\nfile = Path({str(file)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_after(code: str, file: Path, lines: int) -> int:
    """Start a process, kill it while it works on, and return the last number that it told."""
    with started(code, file) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
    last = (told + [line for line in rest.splitlines(keepends=True) if line.endswith("\n")])[-1]
    return int(last)


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_node_knows_every_voucher_that_it_has_saved(tmp_path: Path, seed: int) -> None:
    chance, file = random.Random(seed), tmp_path / "node.db"
    for _ in range(3):
        told = killed_after(NODE, file, chance.randint(1, 80))
        store, earnings = NodeStore(file, HERE, PAYEES[0].address), Earnings(VoucherDigests(HERE), PAYEES[0].address)
        store.restore(earnings)
        bests = {channel.best.cumulative for channel in earnings.channels.values()}
        assert len(bests) == 1, "one transaction for all channels of a step"
        assert bests.pop() >= told
        for channel in earnings.channels.values():
            earnings.digests.check(channel.best, channel.key.signer)
        store.close()


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_client_knows_that_it_may_have_signed(tmp_path: Path, seed: int) -> None:
    chance, file = random.Random(seed), tmp_path / "client.db"
    for _ in range(3):
        signed = killed_after(CLIENT, file, chance.randint(1, 60))
        store = ClientStore(file)
        (channel,) = store.channels(HERE)
        assert channel.ceiling >= signed
        assert 900_000 >= store.spent(1, "credits") >= signed
        store.close()


def test_a_bank_that_is_killed_in_the_middle_of_a_settlement_pays_once(tmp_path: Path) -> None:
    file = tmp_path / "bank.db"
    chance = random.Random(0)
    bank = Bank(file, BANK.address)
    bank.deposit(KEY.payer, 1000, START_S)
    keys = [key_of(salt=salt) for salt in range(CHANNELS)]
    bank.open(KEY.payer, [Opening(key.payee, key.signer, key.salt, 200) for key in keys], START_S)
    bank.close()
    requests = [
        write_request(
            "redeem",
            encode(RedeemBody(tuple(raw_claim(claim_of(key, 10 * round_)) for key in keys))),
            bank=BANK.address,
            account=PAYEES[0],
            request_id=round_.to_bytes(16, "big"),
            expires_s=START_S + 60,
        )
        for round_ in range(1, 11)
    ]
    waiting = list(requests)
    while waiting:
        with started(BANK_PROCESS, file) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            # Some are answered, and of the rest nobody knows how far they came.
            for _ in range(chance.randint(0, min(3, len(waiting)))):
                process.stdin.write(waiting[0].hex() + "\n")
                process.stdin.flush()
                reply = bytes.fromhex(process.stdout.readline())
                assert read_reply("redeem", waiting.pop(0), reply, BANK.address).verdict == "ok"
            if waiting:
                process.stdin.write("\n".join(request.hex() for request in waiting[:2]) + "\n")
                process.stdin.flush()
            process.send_signal(signal.SIGKILL)
    bank = Bank(file, BANK.address)
    service = BankService(bank, BANK)
    for request in requests:  # whoever repeats them all gets the same answers
        reply = service.handle("redeem", request, origin="test", now_s=START_S + 1000)
        assert read_reply("redeem", request, reply, BANK.address).verdict == "ok"
    assert bank.balance(PAYEES[0].address) == CHANNELS * 100
    totals = bank.totals()
    assert totals.free + totals.in_channels == totals.minted == 1000
    bank.close()
