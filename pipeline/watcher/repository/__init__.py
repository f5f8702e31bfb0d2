"""What owners put into the repository.

Nothing here talks to a server:

    changes.py        when another look is worth it
    scan.py           which model folders and versions are whole; faults (model_folder.py, names.py, version_scan.py,
                      manifest.py, version_checks.py)
    completion.py     config.pbtxt completed from the ONNX graph (onnx_graph.py)
    sample.py         the sample request, and answers beside it
    publishing.py     for owners: a version copied into the repository, never half of it
"""
