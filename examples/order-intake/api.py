"""A small shop with an HTTP API: a catalogue, orders, and reservations that fail at the first try.

    python api.py --listen 127.0.0.1:7460

GET  /orders/{id}        the order, 404 when there is none
GET  /catalogue?sku=...  goods with price and stock (sku may be repeated)
POST /reservations       {orderId, lines}. The first try of each reservation answers 503 with Retry-After, as a busy
service would; the repeat, known by its Idempotency-Key, succeeds, and so do all later ones, with
                         the same number. GET  /healthz            200
"""

from __future__ import annotations

import argparse
import hashlib
from collections import OrderedDict
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

GOODS: list[dict[str, Any]] = [
    {"sku": "lamp-brass", "title": "Brass desk lamp", "priceCents": 8900, "stock": 12},
    {"sku": "notebook-a5", "title": "Notebook A5", "priceCents": 1250, "stock": 400},
    {"sku": "chair-oak", "title": "Oak chair", "priceCents": 24_900, "stock": 1},
]

ORDERS: dict[str, dict[str, Any]] = {
    "A-1001": {
        "orderId": "A-1001",
        "customer": {"name": "Ada Okafor", "email": "ada@example.com"},
        "lines": [{"sku": "lamp-brass", "quantity": 1}, {"sku": "notebook-a5", "quantity": 3}],
    },
    "A-1002": {  # more chairs than there are: this one is refused
        "orderId": "A-1002",
        "customer": {"name": "Jan Novak", "email": "jan@example.com"},
        "lines": [{"sku": "chair-oak", "quantity": 4}],
    },
}

REMEMBERED = 10_000
tried: OrderedDict[str, str] = OrderedDict()


async def get_order(request: Request) -> Response:
    order = ORDERS.get(request.path_params["order"])
    if order is None:
        return JSONResponse({"title": "no such order"}, status_code=404)
    return JSONResponse(order)


async def get_catalogue(request: Request) -> Response:
    wanted = set(request.query_params.getlist("sku"))
    return JSONResponse([goods for goods in GOODS if not wanted or goods["sku"] in wanted])


async def reserve(request: Request) -> Response:
    body = await request.json()
    key = request.headers.get("idempotency-key") or str(body["orderId"])
    if key not in tried:
        while len(tried) >= REMEMBERED:
            tried.popitem(last=False)
        tried[key] = "R-" + hashlib.sha256(key.encode()).hexdigest()[:8]
        return JSONResponse({"title": "busy, come again"}, status_code=503, headers={"Retry-After": "1"})
    return JSONResponse({"reservation": tried[key], "orderId": body["orderId"]}, status_code=201)


async def healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")


app = Starlette(
    routes=[
        Route("/orders/{order}", get_order),
        Route("/catalogue", get_catalogue),
        Route("/reservations", reserve, methods=["POST"]),
        Route("/healthz", healthz),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description="A small shop with an HTTP API.")
    parser.add_argument("--listen", default="127.0.0.1:7460", help="host:port")
    host, _, port = parser.parse_args().listen.rpartition(":")
    uvicorn.run(app, host=host, port=int(port), log_level="warning", timeout_graceful_shutdown=3)


if __name__ == "__main__":
    main()
