"""ClickHouse's HTTP interface in front of the embedded engine: `python -m pipeline.stack.clickhouse_http`.

For one machine's try-out and for tests: unmodified clickhouse-connect clients and curl
work, and the real server takes its place by a URL. Result compression is not offered
(loopback), external tables and temporary tables are refused.
"""

import argparse
import asyncio
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from pipeline.stack.clickhouse_body import BodyTooLargeError, UnknownEncodingError, inflate
from pipeline.stack.clickhouse_engine import Chunk, Engine, Query, QueryError
from pipeline.stack.clickhouse_statement import DEFAULT_FORMAT

# Queries at once: more only queue inside the engine on few cores. Bodies are read inside
# this limit too, so memory is bounded by it times the body limit.
QUERIES_MAX = 8
# After inflation. The largest batch of the pipeline's sink is far below.
BODY_BYTES_MAX = 256 * 1024 * 1024
# Requests running at SIGTERM get this long; the supervisor kills after 10 s.
STOP_TIMEOUT_S = 5.0
# Words of the interface in the query string; everything else is a setting or a parameter.
_RESERVED = {
    "query", "database", "default_format", "query_id", "session_id", "session_timeout", "session_check",
    "user", "password", "quota_key", "role", "compress", "decompress", "buffer_size", "wait_end_of_query",
    "client_protocol_version", "stacktrace", "close_session",
}  # fmt: skip
_NOT_FOUND = {
    "UNKNOWN_TABLE", "UNKNOWN_DATABASE", "UNKNOWN_FUNCTION", "UNKNOWN_IDENTIFIER", "UNKNOWN_TYPE", "UNKNOWN_STORAGE",
    "UNKNOWN_SETTING", "UNKNOWN_FORMAT", "UNKNOWN_AGGREGATE_FUNCTION", "UNKNOWN_DATABASE_ENGINE",
}  # fmt: skip
_BAD_REQUEST = {
    "SYNTAX_ERROR", "BAD_ARGUMENTS", "TYPE_MISMATCH", "ILLEGAL_TYPE_OF_ARGUMENT", "ILLEGAL_COLUMN",
    "NUMBER_OF_ARGUMENTS_DOESNT_MATCH", "NOT_ENOUGH_PRIVILEGES", "INVALID_SETTING_VALUE", "CANNOT_PARSE_TEXT",
}  # fmt: skip
_STATUSES = {"NOT_IMPLEMENTED": 501, "TIMEOUT_EXCEEDED": 408, "QUERY_IS_TOO_LARGE": 413, "READONLY": 403}


def http_status(name: str) -> int:
    """The status ClickHouse answers an error of this name with."""
    if name in _NOT_FOUND:
        return 404
    if name in _BAD_REQUEST or name.startswith("CANNOT_PARSE_"):
        return 400
    return _STATUSES.get(name, 500)


class ClickHouseHttp:
    """The routes. The engine's calls block, so they run in threads of its own."""

    def __init__(self, engine: Engine, body_bytes_max: int) -> None:
        self._engine = engine
        self._body_bytes_max = body_bytes_max
        self._threads = ThreadPoolExecutor(QUERIES_MAX, thread_name_prefix="query")
        self._slots = asyncio.Semaphore(QUERIES_MAX)

    def make_app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=self._body_bytes_max)
        app.router.add_get("/ping", self._answer_ok)
        app.router.add_get("/replicas_status", self._answer_ok)
        app.router.add_get("/", self._answer)
        app.router.add_post("/", self._answer)
        return app

    async def _answer_ok(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method in ("GET", "HEAD") and "query" not in request.query:
            return web.Response(text="Ok.\n")  # as the server does, for health checks
        headers = {
            "X-ClickHouse-Query-Id": request.query.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Server-Display-Name": "chdb",
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        async with self._slots:
            try:
                chunks = self._engine.execute(await self._read_query(request))
                first = await self._next(chunks)
                second = await self._next(chunks)
            except QueryError as error:
                return self._refuse(error, headers)
            assert first is not None, "a query yields at least one chunk"
            headers |= {"X-ClickHouse-Format": first.format_name, "X-ClickHouse-Summary": first.summary()}
            if second is None:
                return web.Response(body=first.content, headers=headers)
            return await self._stream(request, headers, first, second, chunks)

    async def _read_query(self, request: web.Request) -> Query:
        words: dict[str, str] = dict(request.query)
        text = words.get("query", "").encode()
        if request.content_type == "multipart/form-data":
            body = b""
            form = await request.post()
            for name, field in form.items():
                if not isinstance(field, str):
                    raise QueryError.make(48, "NOT_IMPLEMENTED", "External tables are not supported")
                words[name] = field
            text = words.get("query", "").encode()
        else:
            body = await self._read_body(request)
        for word in ("compress", "decompress"):
            if words.get(word, "0") != "0":
                raise QueryError.make(48, "NOT_IMPLEMENTED", f"{word}=1 is not supported: use Content-Encoding")
        return Query(
            text=text + b"\n" + body if text and body else text or body,
            settings={k: v for k, v in words.items() if k not in _RESERVED and not k.startswith("param_")},
            parameters={k[6:]: v for k, v in words.items() if k.startswith("param_")},
            database=words.get("database", "") or request.headers.get("X-ClickHouse-Database", ""),
            default_format=words.get("default_format", "")
            or request.headers.get("X-ClickHouse-Format", DEFAULT_FORMAT),
            session_id=words.get("session_id", ""),
            readonly=request.method == "GET",
        )

    async def _read_body(self, request: web.Request) -> bytes:
        encoding = request.headers.get("Content-Encoding", "")
        try:
            body = await request.read()
            return await asyncio.to_thread(inflate, body, encoding, self._body_bytes_max) if encoding else body
        except (web.HTTPRequestEntityTooLarge, BodyTooLargeError) as error:
            limit = f"The body is larger than {self._body_bytes_max} bytes"
            raise QueryError.make(290, "LIMIT_EXCEEDED", limit) from error
        except UnknownEncodingError as error:
            raise QueryError.make(89, "UNKNOWN_COMPRESSION_METHOD", str(error)) from error

    async def _next(self, chunks: Iterator[Chunk]) -> Chunk | None:
        return await asyncio.get_running_loop().run_in_executor(self._threads, next, chunks, None)

    def _refuse(self, error: QueryError, headers: dict[str, str]) -> web.Response:
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        return web.Response(status=http_status(error.name), text=self._error_text(error) + "\n", headers=headers)

    def _error_text(self, error: QueryError) -> str:
        text = str(error)
        return text if "(version " in text else f"{text} (version {self._engine.version})"

    async def _stream(
        self, request: web.Request, headers: dict[str, str], first: Chunk, second: Chunk, chunks: Iterator[Chunk]
    ) -> web.StreamResponse:
        # How a server of 25.11 or later reports an error after the first rows went out.
        tag = uuid.uuid4().hex[:16]
        response = web.StreamResponse(headers=headers | {"X-ClickHouse-Exception-Tag": tag})
        await response.prepare(request)
        chunk: Chunk | None = second
        try:
            await response.write(first.content)
            while chunk is not None:
                await response.write(chunk.content)
                chunk = await self._next(chunks)
        except QueryError as error:
            message = self._error_text(error).encode() + b"\n"
            size = str(len(message)).encode()
            mark = tag.encode()
            await response.write(
                b"\r\n__exception__\r\n" + mark + b"\r\n" + message + size + b" " + mark + b"\r\n__exception__\r\n"
            )
        finally:
            # Of a client that went away the query ends here.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, chunks.close))  # type: ignore[attr-defined]
        await response.write_eof()
        return response


async def serve(path: Path, port: int, body_bytes_max: int) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end for up to 5 s.

    Raises:
        OSError: the port is taken.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    engine = await asyncio.to_thread(Engine, path)
    # Bodies are inflated here: aiohttp knows no lz4, and sets no limit.
    runner = web.AppRunner(
        ClickHouseHttp(engine, body_bytes_max).make_app(),
        auto_decompress=False,
        access_log=None,
        shutdown_timeout=STOP_TIMEOUT_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stopped.wait()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(engine.close)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="ClickHouse's HTTP interface in front of the embedded engine")
    parser.add_argument("--path", type=Path, required=True, help="data folder, for this process alone")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--body-bytes-max", type=int, default=BODY_BYTES_MAX, help="limit of a body after inflation")
    options = parser.parse_args()
    asyncio.run(serve(options.path, options.port, options.body_bytes_max))


if __name__ == "__main__":
    main()
