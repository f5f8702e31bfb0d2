"""The servers there are, each against the contract: the fake of the simulations, and the real one."""

import asyncio
from functools import partial

import pytest

from pipeline.adapters.triton import TritonServer
from pipeline.adapters.triton_shared_memory import SharedSlots
from pipeline.ports import InferenceServer
from tests.contracts.inference_server import InferenceServerContract, Scenario
from tests.simulation.fleet import EchoVersion, FakeInferenceServer
from tests.simulation.virtual_time import run_simulated


class TestFakeInferenceServer(InferenceServerContract):
    """The fake, in virtual time."""

    def run(self, test: Scenario, *, reachable: bool = True) -> None:
        async def scenario() -> None:
            await test(FakeInferenceServer("fake-0", {("echo", "1"): EchoVersion()}, down=not reachable))

        run_simulated(scenario())


@pytest.mark.live
class TestTritonServer(InferenceServerContract):
    """A real Triton of the local stack."""

    @pytest.fixture(autouse=True)
    def _address(self, triton_urls: tuple[str, ...]) -> None:
        self.address = triton_urls[0]

    def make_server(self, address: str) -> TritonServer:
        """The client under test."""
        return TritonServer("triton-0", address)

    def run(self, test: Scenario, *, reachable: bool = True) -> None:
        async def scenario() -> None:
            # Port 9 is "discard": nothing listens there.
            server = self.make_server(self.address if reachable else "127.0.0.1:9")
            try:
                await test(server)
            finally:
                await server.close()

        asyncio.run(scenario())


class TestTritonServerWithSharedMemory(TestTritonServer):
    """The same Triton; large tensors lie in memory that it shares with this process."""

    def make_server(self, address: str) -> TritonServer:
        """The client under test."""
        return TritonServer("triton-0", address, None, partial(SharedSlots, bytes_max=64 << 20))


def test_servers_are_of_the_port() -> None:
    """Both are what the dispatcher is given: the type checker reads this."""
    servers: list[type[InferenceServer]] = [FakeInferenceServer, TritonServer]
    assert all(hasattr(server, "infer") for server in servers)
