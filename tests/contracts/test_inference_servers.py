"""The servers there are, each against the contract: the fake of the simulations, and the real one."""

import asyncio

import pytest

from pipeline.adapters.triton import TritonServer
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

    def run(self, test: Scenario, *, reachable: bool = True) -> None:
        async def scenario() -> None:
            # Port 9 is "discard": nothing listens there.
            server = TritonServer("triton-0", self.address if reachable else "127.0.0.1:9")
            try:
                await test(server)
            finally:
                await server.close()

        asyncio.run(scenario())


def test_servers_are_of_the_port() -> None:
    """Both are what the dispatcher is given: the type checker reads this."""
    servers: list[type[InferenceServer]] = [FakeInferenceServer, TritonServer]
    assert all(hasattr(server, "infer") for server in servers)
