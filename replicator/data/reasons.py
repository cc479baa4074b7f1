"""Why a lane cannot take a batch in, in words: what it is, and what will take it."""

WHY = {
    "refuse_magic": "message format v0 or v1, which brokers stopped writing with Kafka 0.11: copy the topic once with"
    " Kafka's own tools, or let the source broker convert it",
    "refuse_malformed": "its header contradicts itself: damaged on the source's disk or on the way",
    "refuse_producer": "it cannot be told whether a link wrote it",
    "refuse_tail": "the target's last records are not the ones that the source has there: it was compacted"
    " or changed since",
}
