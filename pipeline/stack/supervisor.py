"""All parts of one stack: started together, restarted when they die, stopped in the reverse order."""

import asyncio
import os
import signal
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from pipeline.errors import StackError
from pipeline.stack.clickhouse import make_clickhouse
from pipeline.stack.kafka import make_kafka
from pipeline.stack.part import OnChange, Part
from pipeline.stack.plan import Endpoints, StackPlan
from pipeline.stack.ports import PortBook
from pipeline.stack.process import Probe, ProcessSpec, RestartPolicy
from pipeline.stack.state import (
    RUN_VARIABLE,
    STATE_FILE,
    ProcessId,
    StackLock,
    StackState,
    kill_leftovers,
    read_boot_id,
    read_start_ticks,
    read_state,
    wait_gone,
)
from pipeline.stack.triton import TritonInstance, make_tritons, remove_shared_memory
from pipeline.stack.valkey import make_valkey


class Stack:
    """The local servers, and the caller's processes beside them, under one supervisor.

    Use as an async context manager in the main task. SIGINT and SIGTERM end the block:
    a wait inside it is cancelled, everything is stopped, and the statement after the
    block runs with `stop_signal` set. A second signal kills what is still stopping.
    Children die with this process even when it is SIGKILLed.

    Attributes:
        endpoints: where the local servers listen; complete after `start_servers`.
        tritons: the Triton instances, with what their output says of their models.
        stop_signal: the signal that ended the block, if one did.
    """

    def __init__(
        self, plan: StackPlan, on_change: OnChange = lambda _: None, restart_policy: RestartPolicy = RestartPolicy()
    ) -> None:
        # Paths go to children that run in folders of their own.
        serving = None if plan.serving_dir is None else plan.serving_dir.absolute()
        self.plan = replace(plan, data_dir=plan.data_dir.absolute(), serving_dir=serving)
        self.endpoints = Endpoints()
        self.tritons: tuple[TritonInstance, ...] = ()
        self.stop_signal: signal.Signals | None = None
        self.logs_dir = self.plan.data_dir / "logs"
        self._on_change = on_change
        self._policy = restart_policy
        self._parts: dict[str, Part] = {}
        self._run_id = uuid.uuid4().hex
        self._hurry = asyncio.Event()
        self._started = False
        self._stopping = False
        self._owner: asyncio.Task[object] | None = None
        self._closing = ExitStack()

    async def __aenter__(self) -> Self:
        """Lock the data folder, clear what a killed run left, and take over the signals.

        Raises:
            AlreadyRunningError: another supervisor owns the data folder.
            StackError: the data folder cannot be made or written.
        """
        try:
            self.logs_dir.mkdir(parents=True, exist_ok=True)
            self._closing.enter_context(StackLock(self.plan.data_dir))
            left = read_state(self.plan.data_dir)
            if left is not None:
                await wait_gone(kill_leftovers(left))
            self._write_state()
        except OSError as error:
            self._closing.close()
            raise StackError(f"the data folder {self.plan.data_dir} cannot be used: {error}") from error
        self._owner = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
            self._closing.callback(loop.remove_signal_handler, number)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        await self.stop()
        self._closing.close()
        if self.stop_signal is not None and kind is asyncio.CancelledError:
            assert self._owner is not None, "set on entry"
            self._owner.uncancel()
            return True
        return False

    async def start_servers(self) -> Endpoints:
        """Start the plan's servers side by side; returns when all are ready.

        Raises:
            StackError: one line for each server that cannot start.
        """
        ports = PortBook(self.plan.data_dir / "ports.json")
        env = self._base_env()
        limit_s = self.plan.ready_timeout_s
        parts: list[Part] = []
        if self.plan.valkey:
            spec, url = make_valkey(self.plan.data_dir, ports, env, limit_s)
            self.endpoints = replace(self.endpoints, redis=url)
            parts.append(self._add(spec))
        if self.plan.clickhouse:
            spec, url = make_clickhouse(self.plan.data_dir, ports, env, limit_s)
            self.endpoints = replace(self.endpoints, clickhouse=url)
            parts.append(self._add(spec))
        if self.plan.triton_count:
            (self.plan.data_dir / "triton").mkdir(exist_ok=True)
            self.tritons = await make_tritons(self.plan, ports, env, self.logs_dir)
            self.endpoints = replace(self.endpoints, triton=tuple(one.endpoint for one in self.tritons))
            parts += [self._add(one.spec) for one in self.tritons]
        starts = [part.start() for part in parts]
        if self.plan.kafka:
            # Its first start downloads and formats: the others do not wait for that.
            starts.append(self._start_kafka(ports, env))
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        ports.save()
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        unforeseen = [failure for failure in failures if not isinstance(failure, StackError)]
        if unforeseen:
            raise unforeseen[0]
        if failures:
            raise StackError("\n".join(str(failure) for failure in failures))
        self._write_state()
        return self.endpoints

    async def add_process(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        probe: Probe | None = None,
        *,
        ready_timeout_s: float = 60.0,
        stop_timeout_s: float = 10.0,
    ) -> int:
        """Start a process of the caller's and keep it running; returns its first pid, once ready.

        `env` is added to this process's own. Without a probe it counts as ready at once.

        Raises:
            PartFailedError: it did not become ready.
            StackError: a part of this name exists.
        """
        spec = ProcessSpec(
            name,
            tuple(argv),
            self._base_env() | dict(env or {}),
            probe=probe,
            ready_timeout_s=ready_timeout_s,
            stop_timeout_s=stop_timeout_s,
        )
        part = self._add(spec)
        await part.start()
        assert part.child is not None, "it has just become ready"
        assert part.child.pid is not None, "it was started"
        return part.child.pid

    def set_endpoint(self, name: str, address: str) -> None:
        """Publish in the state file where one of the caller's processes listens."""
        self.endpoints = replace(self.endpoints, other=self.endpoints.other | {name: address})
        self._write_state()

    def set_started(self) -> None:
        """Publish in the state file that nothing more is to come: what runs is all that should."""
        self._started = True
        self._write_state()

    async def wait_stopped(self) -> None:
        """Wait until a signal ends the block (by cancellation: what follows inside it does not run)."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Stop every part, the last started first; the Tritons together. Idempotent."""
        self._stopping = True
        try:
            parts = list(reversed(self._parts.values()))
            servers = {"kafka", "valkey", "clickhouse", *(one.name for one in self.tritons)}
            for part in parts:
                if part.spec.name not in servers:
                    await part.stop(self._hurry)
            # Servers do not depend on each other, and a Triton takes 2-5 s.
            await asyncio.gather(*(part.stop(self._hurry) for part in parts if part.spec.name in servers))
        finally:
            for one in self.tritons:  # stubs that had to be killed leave theirs
                remove_shared_memory(one.shm_prefix)
            self._parts.clear()
            (self.plan.data_dir / STATE_FILE).unlink(missing_ok=True)

    async def _start_kafka(self, ports: PortBook, env: dict[str, str]) -> None:
        spec, address = await make_kafka(self.plan, ports, env, self.logs_dir / "kafka.log")
        self.endpoints = replace(self.endpoints, kafka=address)
        await self._add(spec).start()

    def _add(self, spec: ProcessSpec) -> Part:
        if spec.name in self._parts:
            raise StackError(f"there is a part named {spec.name} already")
        log_path = self.logs_dir / f"{spec.name}.log"
        part = Part(spec, log_path, self._policy, self._on_change, self._write_state)
        self._parts[spec.name] = part
        return part

    def _base_env(self) -> dict[str, str]:
        return dict(os.environ) | {RUN_VARIABLE: self._run_id}

    def _write_state(self) -> None:
        own = ProcessId(os.getpid(), read_start_ticks(os.getpid()) or 0)
        children = ((name, part.child) for name, part in self._parts.items())
        processes = {name: child.id for name, child in children if child is not None and child.id is not None}
        state = StackState(self._run_id, read_boot_id(), own, self.endpoints, processes, self._started)
        state.write(self.plan.data_dir)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping:
            self._hurry.set()
            return
        if self.stop_signal is None and self._owner is not None:
            self.stop_signal = signal.Signals(number)
            self._owner.cancel()
