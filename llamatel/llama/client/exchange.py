"""One call from its beginning to its result: what both clients do, each in its own kind of waiting."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from llamatel.errors import InvalidResponse
from llamatel.llama.client import answer_usage as facts
from llamatel.llama.client.client_call import Call
from llamatel.llama.client.endpoints import Request
from llamatel.llama.client.stream import Pieces
from llamatel.llama.client.transport import Transport

T = TypeVar("T")


def begin(transport: Transport, request: Request[Any]) -> Call:
    """A call that is about to be made; its span begins here, in the caller's context."""
    return Call(request, transport.address, transport.port)


def make(transport: Transport, call: Call, request: Request[T]) -> T:
    """Make a call and wait for its whole answer. Raises RequestError."""
    try:
        response = transport.open(call)
        result = _result(call, request, transport.read(call, response), transport.base_url)
    except BaseException as error:
        # The traceback keeps the connection; without this llama.cpp would go on generating for nobody.
        call.cancel()
        call.end(error)
        raise
    call.end()
    return result


def open_stream(transport: Transport, call: Call) -> Pieces[Any]:
    """Make a call and wait until its answer begins. Raises RequestError."""
    try:
        response = transport.open(call)
        if call.over:  # cancelled meanwhile
            response.close()
    except BaseException as error:
        call.cancel()
        call.end(error)
        raise
    return Pieces(transport, call, response)


def _result(call: Call, request: Request[T], data: bytes, where: str) -> T:
    try:
        document = data if request.text else json.loads(data)
        if isinstance(document, dict):
            facts.take(call.answer, document)
            if call.output is not None:
                call.output.append(document)
        return request.decode(document)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidResponse(
            f"{where}{request.path} answered what llama.cpp does not send", kind="bad_answer"
        ) from error
