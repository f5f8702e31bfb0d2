"""A callback from its request to its receiver: worker, Kafka, Triton and the webhooks process."""

import numpy as np
import pytest

from pipeline.adapters.kafka import client_options
from pipeline.client.dead_letters import DeadLetterTopic
from schemas.result import decode_result
from tests.live.asking import Asking, binary_record, echo_request
from tests.live.processes import ProcessGroup
from tests.live.stack import LiveStack
from tests.live.topics import prepare_topics
from tests.webhooks.callbacks import OLD_SECRET, SECRET, delivering, verified, with_webhooks
from tests.webhooks.receivers import Receiver

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]


async def test_callback_brings_the_result(stack: LiveStack, processes: ProcessGroup) -> None:
    """JSON and binary results arrive as they stand on the topic; a refused URL is answered, a foreign tenant buried."""
    plain = stack.make_settings()
    settings = with_webhooks(plain)
    await prepare_topics(settings, stack.models.values())
    await processes.start("worker", plain, variables={"PIPELINE_WEBHOOKS__ALLOW_HTTP": "true"})
    async with Receiver() as receiver, Asking(settings) as asking, delivering(settings):
        callback = {"callback": {"url": receiver.url("/results")}}
        answered = await asking.ask(echo_request(**callback))
        acmes = await asking.ask(echo_request(tenant="acme", **callback))
        failed = await asking.ask(echo_request(model_name="absent", **callback))
        row = np.array([1.5, np.nan], np.float32)
        asked = echo_request(1.5, 2.5, parameters={"binary_data_output": True}, **callback)
        binary = await asking.answer(
            await asking.send(
                *binary_record(asked, [row.tobytes()])[:1], headers=binary_record(asked, [row.tobytes()])[1]
            )
        )
        foreign = await asking.ask(echo_request(tenant="nobody", **callback))
        wrong = await asking.ask(echo_request(callback={"url": "ftp://127.0.0.1/"}))
        wanted = [one.result.id for one in (answered, acmes, failed, binary)]
        await receiver.until_all(wanted)
        letter = await asking.dead_letters.first(lambda record: True, 20, "a dead letter")
    assert (wrong.error, wrong.message.partition(":")[0]) == ("INVALID_REQUEST", "callback.url")
    calls = {call.webhook_id: call for call in receiver.received}
    assert set(calls) == set(wanted)
    for one in (answered, acmes, failed, binary):
        assert calls[one.result.id].body == one.record.value
        assert calls[one.result.id].headers["content-type"] == one.header("content-type")
    assert verified(calls[answered.result.id], SECRET, OLD_SECRET)["status"] == "succeeded"
    assert verified(calls[acmes.result.id], OLD_SECRET)["status"] == "succeeded"
    assert verified(calls[failed.result.id], SECRET)["error"]["code"] == "MODEL_NOT_FOUND"
    call = calls[binary.result.id]
    result = decode_result(call.body, [(name, value.encode()) for name, value in call.headers.items()])
    np.testing.assert_array_equal(np.frombuffer(result.output("fp32_echo").raw, np.float32), row)
    assert f'"id":"{foreign.result.id}"'.encode() in letter.value
    async with DeadLetterTopic(client_options(settings.kafka), settings.topic("dead-letter")) as letters:
        (found,) = [one async for one in letters.read(await letters.span())]
    assert (found.reason, found.request_id) == ("WEBHOOK_REFUSED", foreign.result.id)
