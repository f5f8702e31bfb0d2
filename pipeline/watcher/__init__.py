"""Model repository -> Triton fleet -> `inference.models`.

A pass goes from the first of these to the last:

    repository/          what owners put there, and whether it is whole
    serving/             immutable copies by content, and the tree that servers load, exchanged whole
    fleet/               servers brought to what is staged, by reload or restart, and what they make of it
    registration.py      all of it for one model (draft.py), and what became of each version (report.py)
    repository_pass.py   all models, one pass at a time; what is gone from the repository
    trial_watch.py       what versions on trial answer
    main.py              the process: passes when something changed, an operator's commands, events
"""
