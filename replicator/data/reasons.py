"""Why a lane cannot take a batch in, in words: what it is, and what will take it."""

LATER = "it must be rebuilt, which this version does not do yet"

WHY = {
    "rebuild_magic": f"message format v0 or v1; {LATER}",
    "rebuild_holes": f"compaction took records out of this batch; {LATER}",
    "rebuild_transactional": f"a transaction's batch, which may have been aborted; {LATER}",
    "rebuild_append_time": f"a LogAppendTime batch, whose times are not in its records; {LATER}",
    "rebuild_delete_horizon": f"the log cleaner has put a delete horizon into this batch; {LATER}",
    "rebuild_head": f"the log starts inside this batch; {LATER}",
    "refuse_codec": "an unknown compression codec: a newer Kafka's, or damage",
    "refuse_malformed": "its header contradicts itself: damaged on the source's disk or on the way",
    "refuse_tail": "the target's last records are not the ones that the source has there: it was compacted"
    " or changed since",
}
