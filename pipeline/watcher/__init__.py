"""Model repository -> Triton fleet -> `inference.models`.

One pass, in its order, and where it is written down:

    repository_changes.py  when another look is worth it
    repository.py          which model folders and versions are whole; faults (model_folder.py, repository_names.py,
                           version_scan.py, version_checks.py, manifest.py)
    completion.py          config.pbtxt completed from the ONNX graph (onnx_graph.py)
    version_store.py       immutable copies by content, with what a model builds itself (build_step.py)
    serving.py             the tree that Triton serves, exchanged whole
    fleet_check.py         load, readiness, configuration, the sample's answer (triton_control.py, sample.py)
    neighbour_check.py     whether answers depend on a batch's other rows (neighbour_rows.py)
    registration.py        all of it for one model, and what became of each version (report.py)
    repository_pass.py     all models, one pass at a time (serving_lock.py); what is gone from the repository
    trial_watch.py         what versions on trial answer
    main.py                the process: passes when something changed, an operator's commands, events

publishing.py is for owners: a version copied into the repository, never half of it.
"""
