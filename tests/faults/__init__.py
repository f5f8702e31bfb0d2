"""Load with an independent oracle, and faults from a seed, on the real local stack: `python -m tests.faults`.

Nothing here imports the product: it is started by its command line and judged by the wire formats alone.

    account.py     what was asked and acknowledged, what was answered: plain records
    images.py      digit images and their labels, by onnxruntime itself
    load.py        the producer: kinds of requests, at a pace and in bursts
    reader.py      results and dead letters, from their first record to their last
    inference_log.py   ClickHouse over HTTP
    product.py     the product's processes, as an operator with systemd keeps them
    schedule.py    seed -> faults
    strikes.py     one fault: begin, hold, end
    campaign.py    load and faults together; waits for what must come back
    verdict.py     account and log -> findings; pure
    rolling.py     workers restarted one after the other
    report.py      docs/faults.md, from a run's figures
"""
