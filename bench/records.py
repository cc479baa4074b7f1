"""Log-like records: JSON lines of a service, each of an exact size, that compress as such lines do.

A pool of distinct records is made once and then repeated; the pool is larger than any codec's window, so repetition
does not help the compressor.
"""

import json
import random

KEY_BYTES = 16

_POOL_BYTES = 4 << 20
_LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR")
_SERVICES = ("checkout", "inventory", "payments", "search", "sessions", "shipping")
_PATHS = ("/v1/orders", "/v1/orders/items", "/v2/carts", "/v1/users/profile", "/healthz", "/v1/search")
_SENTENCES = (
    "request accepted from 10.0.{}.{} and queued for worker {}",
    "upstream answered {} after {} ms, retrying on the next host",
    "connection pool exhausted: {} of {} in use, waiting",
    "cache miss for customer {} in region eu-{}, loading from replica",
    "payment {} authorised for order {}",
    "order {} shipped from warehouse {}",
    "token of session {} expired {} s ago",
    "closed by peer after {} bytes sent and {} received",
    "waiting for the lock on row {} held by transaction {}",
    "index rebuilt: {} documents in {} segments",
)

Record = dict[str, bytes]


def pool(record_bytes: int, seed: int = 1) -> list[Record]:
    """Distinct records of exactly `record_bytes` each, key and value together; the same for the same seed.

    Raises ValueError when that is too small for a key and a JSON object.
    """
    rng = random.Random(seed)
    return [_record(rng, number, record_bytes) for number in range(_POOL_BYTES // record_bytes)]


def _record(rng: random.Random, number: int, record_bytes: int) -> Record:
    key = f"host-{rng.randrange(500):04d}-{rng.randrange(16**6):06x}".encode()
    return {"key": key, "value": _line(rng, number, record_bytes - KEY_BYTES)}


def _line(rng: random.Random, number: int, size: int) -> bytes:
    fields: dict[str, object] = {"ts": 1_750_000_000_000 + number * 7, "level": rng.choice(_LEVELS)}
    if size > 300:
        fields |= {
            "service": rng.choice(_SERVICES),
            "trace": f"{rng.getrandbits(128):032x}",
            "path": rng.choice(_PATHS),
            "status": rng.choice((200, 200, 200, 201, 404, 500, 503)),
            "ms": round(rng.expovariate(0.02), 3),
            "bytes": rng.randrange(100_000),
        }
    bare = json.dumps({**fields, "msg": ""}, separators=(",", ":"))
    room = size - len(bare)
    if room < 1:
        raise ValueError(f"a record of {size + KEY_BYTES} bytes has no room for its fields")
    return json.dumps({**fields, "msg": _text(rng, room)}, separators=(",", ":")).encode()


def _text(rng: random.Random, size: int) -> str:
    text = ""
    while len(text) < size:
        text += rng.choice(_SENTENCES).format(*(rng.randrange(250) for _ in range(3))) + "; "
    return text[:size]
