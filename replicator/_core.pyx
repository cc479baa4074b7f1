# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""The Python face of the native core: objects for its handles, a socket transport, and no policy.

`_core.pyi` is the typed contract of this module; csrc/core.h that of what stands behind it.
"""
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset, strlen

from array import array
from collections import namedtuple
from os import strerror

cdef extern from "sys/socket.h" nogil:
    ssize_t c_recv "recv"(int fd, void *buf, size_t n, int flags)
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t c_sendmsg "sendmsg"(int fd, const msghdr *message, int flags)
    enum: MSG_DONTWAIT

cdef extern from *:
    """
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0 /* macOS: SO_NOSIGPIPE, and Python ignores SIGPIPE anyway */
    #endif
    """
    enum: MSG_NOSIGNAL

CRC32C_KINDS = ("portable", "sse4.2", "armv8")
CRC32C_KIND = CRC32C_KINDS[crc32c_init()]
COUNTERS_SIZE = sizeof(lane_counters)
SEGMENTS_MAX = C_SEGMENTS_MAX

AHEAD_MAX = 4096  # gaps told of at a time: some 100 KB written down
EVENTS = (
    "fetch_error", "diverged", "cannot_take", "produce_error", "offset_drift", "answer_lost", "gap_ahead",
    "merge_ahead", "lingers", "rebuild_ahead",
)
VERDICTS = (
    "pass", "skip_control", "skip_empty", "skip_aborted", "skip_loop", "rebuild_holes", "rebuild_append_time",
    "rebuild_delete_horizon", "rebuild_head", "rebuild_size", "rebuild_codec", "rebuild_loop", "rebuild_open",
    "divert_codec", "refuse_magic", "refuse_malformed", "refuse_producer", "refuse_tail", "no_room",
)

Refused = namedtuple("Refused", "source_offset source_next record_count size records")
Event = namedtuple("Event", "lane kind code first second text")
Terms = namedtuple(
    "Terms", "timestamp_max batch_bytes_max codec opens stamped merge_bytes", defaults=(0, 0, -1, False, False, 0))
BatchHeader = namedtuple(
    "BatchHeader",
    "base_offset size leader_epoch magic crc attributes last_offset_delta base_timestamp max_timestamp "
    "producer_id producer_epoch base_sequence count")


def use_crc32c(str kind):
    if kind not in CRC32C_KINDS or crc32c_use(CRC32C_KINDS.index(kind)):
        raise ValueError(f"this processor has no CRC-32C of kind {kind!r}")


def crc32c(const uint8_t[::1] data, uint32_t crc=0):
    return c_crc32c(crc, &data[0] if data.shape[0] else NULL, data.shape[0])


def crc32c_patch(uint32_t crc, const uint8_t[::1] before, const uint8_t[::1] after, size_t tail):
    if before.shape[0] != after.shape[0]:
        raise ValueError("a patch keeps the length")
    if not before.shape[0]:
        return crc
    return c_crc32c_patch(crc, &before[0], &after[0], before.shape[0], tail)


def open_batch(const uint8_t[::1] data, size_t offset=0):
    cdef batch b
    memset(&b, 0, sizeof(b))
    if offset >= <size_t>data.shape[0]:
        return None
    cdef batch_state state = batch_open(&b, &data[offset], data.shape[0] - offset)
    if state == BATCH_PARTIAL:
        return None
    if state == BATCH_MALFORMED:
        raise ValueError(f"no record batch at byte {offset}: its length or magic is impossible")
    return BatchHeader(
        b.base_offset, b.size, b.leader_epoch, b.magic, b.crc, b.attributes, b.last_offset_delta, b.base_timestamp,
        b.max_timestamp, b.producer_id, b.producer_epoch, b.base_sequence, b.count)


def readdress(uint8_t[::1] data, int64_t producer_id, int16_t producer_epoch, int32_t sequence):
    if data.shape[0] < BATCH_HEADER_SIZE:
        raise ValueError("shorter than a batch header")
    batch_readdress(&data[0], data.shape[0], producer_id, producer_epoch, sequence)


cdef list drain(event_list *events):
    cdef list out = []
    cdef event *e
    for i in range(events.count):
        e = &events.items[i]
        if e.lane.owner != NULL:
            text = e.text[:strlen(e.text)].decode("utf-8", "replace")
            out.append(Event(<object>e.lane.owner, EVENTS[e.kind], e.code, e.first, e.second, text))
    event_list_clear(events)
    return out


cdef class Pool:
    cdef slab_pool *pool

    def __cinit__(self, size_t credit_bytes):
        self.pool = slab_pool_new(credit_bytes)
        if self.pool == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.pool != NULL:
            slab_pool_free(self.pool)

    @property
    def used_bytes(self):
        return slab_pool_used(self.pool)


cdef class Frame:
    """One response frame without its length prefix, readable as a buffer."""
    cdef slab *home

    def __init__(self):
        raise TypeError("frames come from Transport.receive")

    def __dealloc__(self):
        if self.home != NULL:
            slab_unref(self.home)

    def __len__(self):
        return self.home.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.home.data, self.home.size, 1, flags)


cdef checkpoint read_checkpoint(where) except *:
    """The leader epoch may be left out."""
    cdef checkpoint read
    cdef int32_t leader_epoch = where[3] if len(where) > 3 else -1
    read.position, read.target_next, read.sequence = where[:3]
    read.leader_epoch = leader_epoch
    return read


cdef batch_terms read_terms(given) except *:
    cdef batch_terms read
    read.timestamp_max, read.batch_bytes_max, read.codec = given.timestamp_max, given.batch_bytes_max, given.codec
    read.opens, read.stamped = given.opens, given.stamped
    return read


cdef segments read_segments(given, checkpoint end) except *:
    """In order, and none beyond the checkpoint; the caller's to free."""
    cdef segments read
    cdef segment *last
    memset(&read, 0, sizeof(read))
    try:
        for source, target, length in given:
            if not segments_add(&read, source, target, length):
                raise ValueError(f"segment {(source, target, length)}: empty, not behind the last one, or one too many")
        if read.count:
            last = &read.items[read.count - 1]
            if last.source + last.length > end.position or last.target + last.length > end.target_next:
                raise ValueError("the last segment ends beyond the checkpoint")
    except BaseException:
        segments_free(&read)
        raise
    return read


include "_records.pxi"
include "_rebuild.pxi"


cdef class Lane:
    cdef lane *c
    cdef Py_buffer *row  # hidden from the garbage collector, which could let it go while the core still writes there
    cdef readonly str source_topic, target_topic
    cdef readonly int partition
    cdef public object runner

    def __cinit__(self, str source_topic, bytes source_topic_id, str target_topic, int partition,
                  producer, row, bint hold_gaps=False, bint tolerate=False, terms=Terms(),
                  Producers producers=None):
        self.row = <Py_buffer *>calloc(1, sizeof(Py_buffer))
        if self.row == NULL:
            raise MemoryError
        PyObject_GetBuffer(row, self.row, PyBUF_WRITABLE)
        if self.row.len != sizeof(lane_counters) or <size_t>self.row.buf % 8 or len(source_topic_id) != TOPIC_ID_SIZE:
            raise ValueError("a counter row or a topic id has the wrong size, or the row is not aligned")
        cdef bytes source_name = source_topic.encode()
        cdef bytes target_name = target_topic.encode()
        cdef lane_spec spec
        spec.source_topic = source_name
        spec.target_topic = target_name
        spec.source_topic_id = source_topic_id
        spec.source_partition = spec.target_partition = partition
        spec.producer_id, spec.producer_epoch = producer
        spec.hold_gaps, spec.tolerate = hold_gaps, tolerate
        spec.producers = producers.c if producers is not None else NULL
        spec.terms, spec.merge_bytes = read_terms(terms), terms.merge_bytes
        spec.counters = <lane_counters *>self.row.buf
        spec.owner = <void *>self
        self.c = lane_new(&spec)
        if self.c == NULL:
            raise ValueError(f"no lane for topic {source_topic!r}: empty, too long, or out of memory")
        self.source_topic, self.target_topic, self.partition = source_topic, target_topic, partition

    def __dealloc__(self):
        if self.c != NULL:
            lane_orphan(self.c)
            lane_unref(self.c)
        if self.row != NULL:
            PyBuffer_Release(self.row)
            free(self.row)

    def resume(self, where, int64_t skip_records, int64_t stop_offset, segments=()):
        if lane_in_flight(self.c) or self.c.running:
            raise RuntimeError("a lane resumes only when it is halted and has nothing in flight")
        cdef checkpoint start = read_checkpoint(where)
        lane_resume(self.c, start, skip_records, stop_offset, read_segments(segments, start))

    def halt(self):
        lane_halt(self.c)

    def set_source(self, Source source, int32_t leader_epoch):
        source_set(self.c, source.c if source is not None else NULL, leader_epoch)

    def set_target(self, Target target):
        if lane_in_flight(self.c):
            raise RuntimeError("a lane changes its target only when it has nothing in flight")
        target_set(self.c, target.c if target is not None else NULL)

    def segments(self):
        cdef uint32_t i
        cdef segment *items = self.c.segments.items
        return tuple([(items[i].source, items[i].target, items[i].length) for i in range(self.c.segments.count)])

    @property
    def segment_count(self):
        return self.c.segments.count

    def drop_segments(self, uint32_t n):
        lane_drop_segments(self.c, n)

    def ahead(self, uint32_t limit=AHEAD_MAX):
        cdef uint32_t cursor = self.c.head
        cdef uint32_t queued = 0
        cdef list found = []
        cdef const lane_batch *b
        while queued == 0 or queued < limit:
            b = lane_ahead(self.c, &cursor)
            if b == NULL:
                break
            add_intents(found, b)
            if <int32_t>(cursor - self.c.send) > 0:
                queued += b.run_count
        return lane_mark(self.c, cursor), tuple(found)

    def permit(self, uint64_t mark):
        return bool(lane_permit(self.c, mark))

    def set_terms(self, terms):
        self.c.terms, self.c.merge_bytes = read_terms(terms), terms.merge_bytes

    def linger(self, bint lingers):
        lane_linger(self.c, lingers)

    def ripen(self):
        lane_ripen(self.c)

    def asks_for_time(self):
        return bool(lane_asks_for_time(self.c))

    def unblock(self, bint looked):
        lane_unblock(self.c, looked)

    def raw(self, uint32_t nth):
        return view_batch(lane_raw(self.c, nth))

    def replace(self, list made not None):
        self.check_raw()
        if not all([isinstance(one, Made) for one in made]):
            raise TypeError("a batch is replaced by others that were made")
        cdef rebuilt *parts = <rebuilt *>calloc(max(len(made), 1), sizeof(rebuilt))
        cdef Made part
        if parts == NULL:
            raise MemoryError
        for i, part in enumerate(made):
            parts[i] = rebuilt(part.home, part.runs, part.run_count, part.count, part.max_timestamp)
        cdef verdict v = lane_replace(self.c, parts, len(made))
        free(parts)
        return VERDICTS[v]

    cdef check_raw(self):
        if not lane_raw_count(self.c):
            raise RuntimeError("the lane has nothing raw (any more)")

    def pass_raw(self):
        self.check_raw()
        return VERDICTS[lane_pass(self.c)]

    def announces(self):
        cdef int64_t source_offset
        return bool(lane_announces(self.c, &source_offset))

    def refused(self):
        cdef refused_batch *r = &self.c.refused
        records = {}
        for i in range(r.named):
            text = r.records[i].text[:r.records[i].text_length].decode("utf-8", "replace")
            records[r.records[i].source_offset] = text
        return Refused(r.source_offset, r.source_next, r.count, r.size, records)

    def mergeable(self):
        if not lane_queued(self.c):
            return []
        cdef int codec = lane_waiting(self.c, 0).bytes[22] & 7
        return [view_batch(lane_waiting(self.c, i)) for i in range(lane_mergeable(self.c, codec))]

    def join(self, uint32_t n, Made one not None):
        if n > lane_queued(self.c) or n < 1:
            raise ValueError(f"{n} batches are to be merged, {lane_queued(self.c)} are queued")
        cdef uint32_t i
        cdef uint64_t count = 0
        for i in range(n):
            count += lane_waiting(self.c, i).count
        if count != one.count:
            raise ValueError(f"{n} batches became {one.count} records, which is not what they hold")
        batch_readdress(one.home.data, one.home.size, self.c.producer_id, self.c.producer_epoch,
                        lane_waiting(self.c, 0).sequence)
        lane_join(self.c, n, one.home)

    def decline_merge(self, bint for_good):
        lane_merge_declined(self.c, for_good)

    @property
    def raw_count(self):
        return lane_raw_count(self.c)

    @property
    def generation(self):
        return self.c.generation

    @property
    def in_flight(self):
        return lane_in_flight(self.c)

    @property
    def queued(self):
        return lane_queued(self.c)

    @property
    def running(self):
        return bool(self.c.running)

    @property
    def skip_records(self):
        return self.c.skip_records


cdef class Source:
    cdef source *c
    cdef Pool pool

    def __cinit__(self, Pool pool not None, uint64_t lane_bytes_max, bint committed=False):
        self.pool = pool
        self.c = source_new(pool.pool, lane_bytes_max, committed)
        if self.c == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.c != NULL:
            source_unref(self.c)

    def limit(self, uint64_t lane_bytes_max):
        source_limit(self.c, lane_bytes_max)


cdef class FetchStream:
    cdef fetch_stream *c
    cdef Source source
    cdef bytes client_id
    cdef event_list events
    cdef readonly uint32_t bytes_max

    def __cinit__(self, Source source not None, bytes client_id not None, uint32_t bytes_max):
        self.source, self.client_id, self.bytes_max = source, client_id, bytes_max
        self.c = fetch_stream_new(source.c)
        if self.c == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.c != NULL:
            fetch_stream_free(self.c)
        event_list_free(&self.events)

    def compose(self, Transport transport not None, int16_t version, int32_t correlation_id, int32_t wait_ms):
        cdef fetch_terms terms
        cdef const uint8_t *request = NULL
        if transport.first < transport.count:
            return False  # an earlier request may still stand in the buffer that this one would be written to
        terms.version, terms.correlation_id, terms.wait_ms = version, correlation_id, wait_ms
        terms.client_id, terms.client_id_length = self.client_id, PyBytes_GET_SIZE(self.client_id)
        terms.bytes_max = self.bytes_max
        cdef size_t size = fetch_compose(self.c, &terms, &request)
        if size:
            transport.push(<void *>request, size, self)
        return size != 0

    def abort(self):
        fetch_abort(self.c)

    def take_events(self):
        return drain(&self.events) if self.events.count else []

    @property
    def throttle_ms(self):
        return fetch_throttle_ms(self.c)

    @property
    def error(self):
        return fetch_error(self.c)


cdef class Target:
    cdef target *c
    cdef bytes client_id
    cdef event_list events
    cdef uint32_t bytes_max
    cdef int32_t timeout_ms
    cdef Transport sending  # the newest request

    def __cinit__(self, bytes client_id not None, uint32_t bytes_max, int32_t timeout_ms):
        self.client_id, self.bytes_max, self.timeout_ms = client_id, bytes_max, timeout_ms
        self.c = target_new()
        if self.c == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.c != NULL:
            target_abandon(self.c, &self.events)
            target_unref(self.c)
        event_list_free(&self.events)

    def gather(self, Transport transport not None, int16_t version, int32_t correlation_id):
        cdef produce_terms terms
        cdef produce_request request
        if transport.first < transport.count:
            return 0  # or more than the newest request could be unsent when an answer comes: see settle
        terms.version, terms.correlation_id, terms.timeout_ms = version, correlation_id, self.timeout_ms
        terms.client_id, terms.client_id_length = self.client_id, PyBytes_GET_SIZE(self.client_id)
        terms.bytes_max = self.bytes_max
        if not target_gather(self.c, &terms, &request, &self.events):
            return 0
        self.sending = transport
        for i in range(request.count):
            transport.push(request.parts[i].iov_base, request.parts[i].iov_len, self if i == 0 else None)
        return request.bytes

    def settle(self, Frame frame not None):
        cdef int32_t throttle_ms = 0
        if target_in_flight(self.c) == 1 and self.sending.first < self.sending.count:
            raise ValueError("an answer to a Produce request that is still being sent")  # its bytes must not move
        if not target_settle(self.c, frame.home.data, frame.home.size, &throttle_ms, &self.events):
            raise ValueError("not the answer to the Produce request that is due")
        return throttle_ms

    def abandon(self):
        if self.sending is not None and self.sending.first < self.sending.count:
            raise RuntimeError("a request is still being sent: close its transport before giving it up")
        self.sending = None
        target_abandon(self.c, &self.events)

    def take_events(self):
        return drain(&self.events) if self.events.count else []

    @property
    def waiting(self):
        return bool(target_waiting(self.c))

    @property
    def ready(self):
        return bool(target_ready(self.c))

    @property
    def in_flight(self):
        return target_in_flight(self.c)


include "_transport.pxi"
