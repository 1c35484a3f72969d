"""asyncio programs on the virtual loop: order, time, cancellation, and what is refused."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from swarm_sim.errors import BudgetSpent, Deadlock, RealWorld
from swarm_sim.virtual_clock import EPOCH_NS, VirtualClock
from swarm_sim.virtual_loop import run, running_loop


def test_time_jumps_to_the_next_timer_and_timers_of_one_instant_run_in_the_order_they_were_set() -> None:
    async def main() -> list[tuple[float, str]]:
        loop, seen, done = running_loop(), [], asyncio.Event()
        for delay_s, name in ((3600.0, "d"), (2.0, "b"), (2.0, "c"), (1.0, "a")):
            loop.call_later(delay_s, lambda name=name: seen.append((loop.time(), name)))
        loop.call_soon(seen.append, (0.0, "first"))
        loop.call_at(3600.0, done.set)
        await done.wait()
        return seen

    assert run(main()) == [(0.0, "first"), (1.0, "a"), (2.0, "b"), (2.0, "c"), (3600.0, "d")]


def test_a_timer_in_the_past_runs_now_and_time_never_goes_back() -> None:
    async def main() -> tuple[float, float]:
        await asyncio.sleep(5)
        loop = running_loop()
        ran = loop.create_future()
        loop.call_at(1.0, lambda: ran.set_result(loop.time()))
        return await ran, loop.time()

    assert run(main()) == (5.0, 5.0)


def test_a_cancelled_timer_never_runs_however_many_are_cancelled() -> None:
    async def main() -> tuple[list[int], float]:
        loop, seen = running_loop(), []
        timers = [loop.call_later(10.0 + number, seen.append, number) for number in range(5000)]
        for number, timer in enumerate(timers):
            if number % 1000:
                timer.cancel()
        await asyncio.sleep(4011)
        timers[0].cancel()
        return seen, loop.time()

    assert run(main()) == ([0, 1000, 2000, 3000, 4000], 4011.0)


def test_a_task_group_cancels_the_others_when_one_fails() -> None:
    async def main() -> tuple[list[str], float]:
        ended: list[str] = []

        async def wait(name: str) -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                ended.append(name)
                raise

        async def fail() -> None:
            await asyncio.sleep(3)
            raise ValueError

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for name in "abcdef":
                    group.create_task(wait(name))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup) as raised:
            await all_of_them()
        assert isinstance(raised.value.exceptions[0], ValueError)
        return ended, running_loop().time()

    assert run(main()) == (list("abcdef"), 3.0)


def test_timeouts_end_what_takes_too_long_and_nothing_else() -> None:
    async def main() -> float:
        async with asyncio.timeout(2):
            await asyncio.sleep(1.5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.25):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), timeout=0.25)
        assert await asyncio.wait_for(asyncio.sleep(0.5, "value"), timeout=1) == "value"
        done, pending = await asyncio.wait({asyncio.ensure_future(asyncio.sleep(9))}, timeout=1)
        assert not done
        pending.pop().cancel()
        return running_loop().time()

    assert run(main()) == 3.5


def test_queues_locks_semaphores_and_conditions_wake_in_order() -> None:
    async def main() -> list[tuple[str, int, float]]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
        lock, condition, gate, seen = asyncio.Lock(), asyncio.Condition(), asyncio.Semaphore(2), []
        loop = running_loop()

        async def produce() -> None:
            for number in range(6):
                await queue.put(number)
                await asyncio.sleep(1)

        async def consume(name: str) -> None:
            while True:
                number = await queue.get()
                async with gate, lock:
                    await asyncio.sleep(1.5)
                seen.append((name, number, loop.time()))
                async with condition:
                    condition.notify_all()

        async with asyncio.TaskGroup() as group:
            consumers = [group.create_task(consume(name)) for name in "abc"]
            group.create_task(produce())
            async with condition:
                await condition.wait_for(lambda: len(seen) == 6)
            for consumer in consumers:
                consumer.cancel()
        return seen

    assert run(main()) == [
        ("a", 0, 1.5), ("b", 1, 3.0), ("c", 2, 4.5), ("a", 3, 6.0), ("b", 4, 7.5), ("c", 5, 9.0),
    ]  # fmt: skip


def test_gather_shield_and_async_generators() -> None:
    async def count(limit: int) -> AsyncIterator[int]:
        for number in range(limit):
            await asyncio.sleep(1)
            yield number

    async def collect(limit: int) -> list[int]:
        return [number async for number in count(limit)]

    async def main() -> float:
        assert await asyncio.gather(collect(3), collect(2)) == [[0, 1, 2], [0, 1]]
        inner = asyncio.ensure_future(asyncio.sleep(5, "kept"))
        outer = asyncio.ensure_future(asyncio.shield(inner))
        await asyncio.sleep(1)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert await inner == "kept"
        async for number in count(10):  # left open: the loop closes it at the end
            if number == 1:
                break
        return running_loop().time()

    assert run(main()) == 10.0


def test_sets_of_tasks_and_futures_iterate_alike_in_every_run() -> None:
    async def main() -> list[int]:
        tasks = [asyncio.ensure_future(asyncio.sleep(1, number)) for number in range(50)]
        done, _ = await asyncio.wait(tasks)
        futures = {running_loop().create_future(): number for number in range(50)}
        return [task.result() for task in done] + [futures[future] for future in set(futures)]

    first, second = run(main()), run(main())
    assert first == second


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_start_at_once() -> None:
    async def main() -> tuple[list[str], str]:
        seen: list[str] = []

        async def work() -> str:
            seen.append("started")
            await asyncio.sleep(1)
            return "ended"

        factory = running_loop().get_task_factory()
        assert factory is not None
        task = factory(running_loop(), work(), eager_start=True)
        seen.append("after")
        return seen, await task

    assert run(main()) == (["started", "after"], "ended")


def test_a_deadlock_says_which_tasks_wait_where() -> None:
    async def wait_for_nobody(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        await asyncio.sleep(12.5)
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_for_nobody(asyncio.Event()), name="lonely")
            for _ in range(3):
                group.create_task(wait_for_nobody(asyncio.Event()), name="many")

    with pytest.raises(Deadlock) as raised:
        run(main())
    report = str(raised.value)
    assert raised.value.at_s == 12.5
    assert "1 x lonely: " in report
    assert "3 x many: " in report
    assert "wait_for_nobody (test_virtual_loop.py:" in report
    assert "Event.wait (locks.py:" in report
    assert "TaskGroup.__aexit__ (taskgroups.py:" in report


def test_a_program_that_spins_spends_its_budget() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(BudgetSpent, match=r"spin \(test_virtual_loop\.py:"):
        run(spin(), max_events=1000)


def test_run_in_executor_runs_inline_and_answers_later() -> None:
    async def main() -> tuple[int, bool, float]:
        loop = running_loop()
        thread = await asyncio.to_thread(threading.get_ident)
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return thread, loop.time() > 0, loop.time()

    thread, took_time, ended_s = run(main())
    assert thread == threading.get_ident()
    assert took_time
    assert ended_s == 0.002


def test_the_real_world_is_refused() -> None:
    async def main() -> None:
        loop = running_loop()
        with pytest.raises(RealWorld, match="create_connection"):
            await asyncio.open_connection("127.0.0.1", 1)
        with pytest.raises(RealWorld, match="create_server"):
            await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        with pytest.raises(RealWorld, match="subprocess_exec"):
            await asyncio.create_subprocess_exec("true")
        with pytest.raises(RealWorld, match="getaddrinfo"):
            await loop.getaddrinfo("localhost", 1)
        raised: list[BaseException] = []

        def from_outside() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except RealWorld as error:
                raised.append(error)

        thread = threading.Thread(target=from_outside)
        thread.start()
        thread.join()
        assert len(raised) == 1

    run(main())


def test_the_clock_reads_virtual_time() -> None:
    async def main() -> None:
        clock = VirtualClock(running_loop())
        await asyncio.sleep(1.5)
        assert clock.monotonic() == 1.5
        assert clock.wall_ns() - EPOCH_NS == 1_500_000_000

    run(main())
