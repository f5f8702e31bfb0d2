"""The servers.

Everything that is said to one, and what it answers:

    triton_control.py    orders to one server, and what it says of itself
    strategy.py          how they are updated: reload.py, or restart.py by restart_orders.py
    check.py             load, readiness, configuration, the sample's answer
    neighbour_check.py   whether answers depend on a batch's other rows (neighbour_rows.py)
"""
