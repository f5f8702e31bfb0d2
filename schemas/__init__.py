"""The wire formats: what travels on the topics and over HTTP, as pydantic models.

These models are the one source of every generated document (``documents.py``): JSON Schema, AsyncAPI and OpenAPI
are made from them, never written by hand. Nothing here does I/O or knows a broker.

    errors.py    the error codes, their HTTP status, whether a retry can help
    tensor.py    datatypes; a tensor's JSON form and its raw little-endian bytes
    request.py   an inference request: the JSON record and the binary form
    result.py    its answer
    event.py     the lines of the events topic: the columns of ClickHouse's tables
    registry.py  what the models topic says of a model and its versions
    headers.py   the Kafka headers of each kind of record
    json_schemas.py, examples.py, asyncapi.py, documents.py   the generated documents, written into docs/
"""
