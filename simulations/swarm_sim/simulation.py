"""A swarm in virtual time: nodes that crash, clients that generate, every token checked.

Owns a run from the first node's start to the check that no session is left on any, while its client is still there.
What runs is the production code of node and client; what chance decides is drawn by `scenario.py`; `run.py` prints the
report.
"""

import asyncio
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from swarm_client.errors import ClientError, code
from swarm_net.directory import MemoryStore
from swarm_net.errors import NetError
from swarm_net.links import PeerId
from swarm_net.manifest import Manifest
from swarm_net.memory import MemoryNetwork
from swarm_net.messages import Lane, ModelId
from swarm_sim.digest_executor import MAX_CONTEXT_TOKENS
from swarm_sim.digest_model import DIGEST_BYTES, VOCABULARY
from swarm_sim.network import WideArea
from swarm_sim.regions import Regions
from swarm_sim.report import Report, SessionLog, failures, first_token_ms, token_ms
from swarm_sim.scenario import Scenario
from swarm_sim.simulated_client import Errand, SimulatedClient
from swarm_sim.simulated_node import SimulatedNode, Universe
from swarm_sim.trace import Trace
from swarm_sim.virtual_clock import VirtualClock
from swarm_sim.virtual_loop import VirtualLoop, run, running_loop

Progress = Callable[[int, int], None]  # sessions ended, sessions in all

SESSIONS_PER_CLIENT = 5
BOOTSTRAP_NODES = 3
CONNECT_S = 5.0  # before its first session a client connects
SETTLE_S = 20.0  # behind the last session: time for the last words, too little for a node to give up an idle session


def _no_progress(done: int, total: int) -> None:
    """Nobody watches."""


def simulate(
    scenario: Scenario, *, trace: Trace | None = None, progress: Progress = lambda done, total: None
) -> Report:
    """Run a scenario to its end and report it.

    Raises Deadlock or BudgetSpent where the swarm can or may not go on.
    """
    trace = trace or Trace()
    faults = _Faults()
    logging.getLogger().addHandler(faults)
    started_s = perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="swarm-sim-") as files:
            swarm = run(_Swarm.play(scenario, Path(files), progress), trace=trace)
    finally:
        logging.getLogger().removeHandler(faults)
    return swarm.report(trace, faults.lines, perf_counter() - started_s)


class _Faults(logging.Handler):
    """Collects what is logged as an error: exceptions that nobody caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.lines.append(record.getMessage() + (f": {type(error).__name__}: {error}" if error else ""))


class _Swarm:
    """The peers of one run and what their sessions saw."""

    def __init__(self, scenario: Scenario, universe: Universe, progress: Progress) -> None:
        self._scenario = scenario
        self._universe = universe
        self._progress = progress
        self._nodes = [
            SimulatedNode(universe, scenario.machine(number), scenario.rng(f"node {number}"))
            for number in range(scenario.nodes)
        ]
        self._logs: list[SessionLog] = []
        self._ended = 0
        self._began_s = self._ended_s = 0.0
        self._left_over = 0
        self._all_ended = asyncio.Event()
        self._may_leave = asyncio.Event()

    @classmethod
    async def play(cls, scenario: Scenario, files: Path, progress: Progress) -> "_Swarm":
        """Run the scenario; must be on a virtual loop."""
        swarm = cls(scenario, _build_universe(scenario, running_loop(), files), progress)
        async with asyncio.TaskGroup() as lives:
            tasks = []
            for number, node in enumerate(swarm._nodes):  # one after the other, each sees the spans of those before
                tasks.append(lives.create_task(node.live(scenario.crashes(number)), name=f"node {number}"))
                await node.is_ready.wait()
            await swarm._run_sessions()
            for task in tasks:
                task.cancel()
        return swarm

    async def _run_sessions(self) -> None:
        self._began_s = self._ended_s = running_loop().time()
        errands = self._scenario.errands()
        clients = -(-len(errands) // SESSIONS_PER_CLIENT)
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._run_client(number, errands[number::clients]), name=f"client {number}")
            await self._all_ended.wait()
            await asyncio.sleep(SETTLE_S)
            self._left_over = sum(node.sessions for node in self._nodes)
            self._may_leave.set()

    async def _run_client(self, number: int, errands: list[Errand]) -> None:
        """Connect in time for the first errand, do them all, side by side where they overlap, and stay to the end."""
        rng = self._scenario.rng(f"client {number}")
        place = self._scenario.client_place(number)
        await self._sleep_until(min(errand.arrival_s for errand in errands) - CONNECT_S)
        running = [node.address for node in self._nodes if node.is_ready.is_set()]
        bootstrap = rng.sample(running, min(BOOTSTRAP_NODES, len(running)))
        try:
            async with SimulatedClient.connect(self._universe, place, bootstrap, rng) as client:
                async with asyncio.TaskGroup() as sessions:
                    for errand in errands:
                        sessions.create_task(self._run_session(client, errand), name="session")
                await self._may_leave.wait()
        except (NetError, ClientError) as error:
            for errand in errands:
                self._logs.append(SessionLog(running_loop().time(), len(errand.prompt), failure=code(error)))
                self._end_session()

    async def _run_session(self, client: SimulatedClient, errand: Errand) -> None:
        await self._sleep_until(errand.arrival_s)
        log = SessionLog(started_s=running_loop().time(), prompt_tokens=len(errand.prompt))
        self._logs.append(log)
        await client.run(errand, log)
        self._end_session()

    async def _sleep_until(self, at_s: float) -> None:
        """Sleep until so long after the sessions began."""
        await asyncio.sleep(max(0.0, self._began_s + at_s - running_loop().time()))

    def _end_session(self) -> None:
        self._ended += 1
        self._ended_s = running_loop().time()
        self._progress(self._ended, self._scenario.sessions)
        if self._ended == self._scenario.sessions:
            self._all_ended.set()

    def report(self, trace: Trace, faults: list[str], real_s: float) -> Report:
        scenario, logs = self._scenario, self._logs
        tokens = sum(len(log.token_times_s) for log in logs)
        virtual_s = self._ended_s - self._began_s
        return Report(
            seed=scenario.seed,
            nodes=scenario.nodes,
            sessions=scenario.sessions,
            finished=sum(log.has_finished for log in logs),
            failed=failures(logs),
            wrong=sum(log.first_wrong_token is not None for log in logs),
            retries=sum(log.retries for log in logs),
            crashes=sum(node.crashes for node in self._nodes),
            left_over=self._left_over,
            tokens=tokens,
            guesses_right=sum(log.guesses_right for log in logs),
            virtual_s=virtual_s,
            tokens_per_s=tokens / virtual_s if virtual_s else 0.0,
            first_token_ms=first_token_ms(logs),
            token_ms=token_ms(logs),
            frames=self._universe.area.frames,
            megabytes=self._universe.area.bytes / 1e6,
            events=trace.events,
            unhandled=faults,
            trace_hash=trace.hexdigest(),
            real_s=real_s,
        )


def _build_universe(scenario: Scenario, loop: VirtualLoop, files: Path) -> Universe:
    area = WideArea(Regions(scenario.regions), scenario.rng("network"))

    def delay(source: PeerId, target: PeerId, frame_bytes: int, lane: Lane) -> float:
        now_s = loop.time()
        loop.trace.note(now_s, f"{lane} {source[-8:]}>{target[-8:]}", frame_bytes)
        return area.delay_s(now_s, source, target, lane, frame_bytes)

    clock = VirtualClock(loop)
    manifest = Manifest(
        model_type="digest",
        architectures=("DigestModel",),
        num_blocks=scenario.blocks,
        vocab_size=VOCABULARY,
        hidden_size=DIGEST_BYTES,
        max_position=MAX_CONTEXT_TOKENS,
        eos_token_ids=(),
        files={},
        weights="",
        commit="",
    )
    return Universe(
        network=MemoryNetwork(delay),
        area=area,
        store=MemoryStore(clock),
        clock=clock,
        model=ModelId(name="digests", revision=manifest.revision),
        manifest=manifest,
        files=files,
    )
