"""What paying costs a token: `python benchmarks/ledger.py [--repeats 20]`.

Two swarms of two real nodes each with the demo model, one that asks for money (an embedded bank, credits) and one that
asks for nothing, take turns; tokens/s behind the first token. Below that, what the code on the token's way takes,
alone, in microseconds a hop: with a voucher at every step, which is the most there can be, and where one is due.
"""

import argparse
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from swarm_client import AsyncRemoteModel
from swarm_ledger.accounts import Account
from swarm_ledger.channels import ChannelKey, ChannelState, Domain, Voucher, VoucherDigests
from swarm_ledger.client_store import ClientStore, Raise
from swarm_ledger.currencies import CREDITS
from swarm_ledger.earning import Earnings
from swarm_ledger.metering import Meter, Place
from swarm_ledger.node_store import NodeStore
from swarm_ledger.quotes import Quote
from swarm_ledger.sealing import SealKey, begin_seal
from swarm_ledger.sections import first_of, pack, pay_section, read_pay
from swarm_ledger.spending import Budget, Purse
from swarm_node.pricing import Measured, make_quote, rate
from swarm_sim.demo_model import demo_model_path
from swarm_sim.local_swarm import LocalSwarm, LocalSwarmPlan
from swarm_sim.splits import split_checkpoint
from tables import show_table

TOKENS = 200
STEPS = 2000
CLIENT_AIM_US, NODE_AIM_US, RATIO_AIM = 60, 80, 0.97


async def tokens_per_s(model: AsyncRemoteModel, number: int) -> float:
    """Generate once."""
    generation = await model.generate([1, number % 500 + 2, 3], max_new_tokens=TOKENS, temperature=1.0, seed=number)
    assert generation.timings.tokens_per_s is not None
    return generation.timings.tokens_per_s


async def run(repeats: int, progress: Progress) -> tuple[list[float], list[float]]:
    """Return tokens/s for nothing and for money, in turns."""
    task = progress.add_task("tokens/s", total=repeats)
    model = demo_model_path()
    splits = split_checkpoint(model, 2)
    free_plan = LocalSwarmPlan(model=model, splits=splits, price="0")
    paid_plan = LocalSwarmPlan(model=model, splits=splits, price="")
    free: list[float] = []
    paid: list[float] = []
    name = str(model)
    async with (
        LocalSwarm(free_plan) as free_swarm,
        LocalSwarm(paid_plan) as paid_swarm,
        AsyncRemoteModel.connect(name, free_swarm.bootstrap, wallet="none") as free_model,
        AsyncRemoteModel.connect(
            str(model), paid_swarm.bootstrap, wallet=paid_swarm.directory / "wallet"
        ) as paid_model,
    ):
        for number in range(repeats + 1):
            order = (free_model, paid_model) if number % 2 else (paid_model, free_model)
            rates = {remote is paid_model: await tokens_per_s(remote, number) for remote in order}
            if number:  # the first pair warms up
                free.append(rates[False])
                paid.append(rates[True])
                progress.advance(task)
    return free, paid


def quote_with(window_ns: int, payee: Account, seal_key: SealKey) -> Quote:
    """Return a price list like the demo's, with another window."""
    quote = make_quote(
        time.time(),
        rates=rate(Measured(3000.0, 400.0), 4),
        price_per_hour=CREDITS.parse("1"),
        page_size=16,
        domain=Domain(0, payee.address),
        payee=payee.address,
        currency=CREDITS,
        seal_key=seal_key.public,
    )
    values = {name: getattr(quote, name) for name in quote.__struct_fields__}
    return Quote(**{**values, "window_ns": window_ns})


def costs_us(window_ns: int, folder: Path) -> tuple[list[float], list[float]]:
    """Return what each step costs client and node, stores on disk included."""
    payer, payee, signer = (Account.generate(secrets.token_bytes) for _ in range(3))
    seal_key = SealKey(secrets.token_bytes(32))
    quote = quote_with(window_ns, payee, seal_key)
    digests = VoucherDigests(quote.domain)
    key = ChannelKey(payer.address, payee.address, signer.address, 1)
    client_store = ClientStore(folder / f"client-{window_ns}.sqlite")
    node_store = NodeStore(folder / f"node-{window_ns}.sqlite", quote.domain, payee.address)
    channel = client_store.add(key, signer, quote.domain)
    client_store.allocate(channel, 10**15)
    place = Place(blocks=4, is_first=True, is_last=False, pages=32)
    purse = Purse(channel, Meter(quote, place), (Budget("", None), Budget("", None)), quote.amount(quote.window_ns))
    earnings = Earnings(digests, payee.address)
    earning = earnings.learn(key, ChannelState(10**15, 0))
    tab = earnings.open(earning, Voucher(key.id, 0, b""), Meter(quote, place))
    ephemeral, seal = begin_seal(seal_key.public, b"session", secrets.token_bytes)
    node_seal = seal_key.accept(ephemeral, b"session")
    client_us, node_us = [], []
    for position in range(STEPS):
        began = time.perf_counter()
        target = purse.send("decode", position, 1, 1)
        sealed = b""
        if target:
            if target > channel.ceiling:
                client_store.raise_ceilings([Raise(channel, target)], day=0, currency="credits")
            sealed = pack([seal.seal(pay_section(purse.voucher(target)))])
        sent = time.perf_counter()
        own, _ = first_of(sealed)
        if own:
            voucher, _ = read_pay(node_seal.open(own), key.id)
            earnings.pay(tab, voucher)
        tab.check("decode", position, 1, 1)
        tab.charge("decode", position, 1, 1)
        if position % 16 == 0:  # the node stores what came in 50 ms in one transaction
            node_store.save(earnings, most_at_risk=max(1, quote.amount(quote.window_ns)))
        served = time.perf_counter()
        purse.answered()
        client_us.append((sent - began + time.perf_counter() - served) * 1e6)
        node_us.append((served - sent) * 1e6)
    client_store.close()
    node_store.close()
    return client_us, node_us


def spread(values: list[float], form: Callable[[float], str]) -> str:
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    asked = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 140)
    with Progress(console=console, transient=True) as progress, tempfile.TemporaryDirectory() as folder:
        free, paid = uvloop.run(run(asked.repeats, progress))
        costs = {
            "a voucher with every step": costs_us(0, Path(folder)),
            "a voucher where it is due": costs_us(2_000_000_000, Path(folder)),
        }
    table = Table("tokens/s, free", "paid", "paid / free", "aim", title="Decoding, demo model, two nodes")
    ratio = statistics.median(second / first for first, second in zip(free, paid, strict=True))
    table.add_row(spread(free, "{:.0f}".format), spread(paid, "{:.0f}".format), f"{ratio:.3f}", f">= {RATIO_AIM}")
    show_table(console, table)
    table = Table("what", "client, us a hop: mean", "median", "aim", "node: mean", "median", "aim", title="A step")
    for name, (client_us, node_us) in costs.items():
        client, node = (
            (f"{statistics.fmean(values):.0f}", f"{statistics.median(values):.0f}") for values in (client_us, node_us)
        )
        table.add_row(name, *client, f"<= {CLIENT_AIM_US}", *node, f"<= {NODE_AIM_US}")
    show_table(console, table)


if __name__ == "__main__":
    main()
