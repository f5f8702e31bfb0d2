"""Results that were asked for by `callback` -> their receivers, at least once (Standard Webhooks 1.0).

`main.run_webhooks` is the process, `deliveries.Deliveries` takes records of the webhooks topics when they are due,
`backlog.Backlog` is one partition of them, `deliverer.Deliverer` makes one attempt and writes what follows from it,
`in_flight.HostLines` keeps one slow receiver from having all calls. What comes of an answer, and when the next attempt
is, is decided by the core: `core/webhook_schedule.py`, with `core/callback_record.py`, `core/callback_url.py`,
`core/public_addresses.py` and `core/webhook_signature.py`.
"""
