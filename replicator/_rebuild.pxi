# Part of _core.pyx: batches that are opened, and those that are made of them.


cdef class Batch:
    """A whole batch of a lane, readable as a buffer for as long as this object lives."""
    cdef slab *home
    cdef uint8_t *bytes
    cdef uint32_t size
    cdef readonly int64_t from_offset
    cdef readonly str why

    def __init__(self):
        raise TypeError("batches come from a lane")

    def __dealloc__(self):
        if self.home != NULL:
            slab_unref(self.home)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.bytes, self.size, 1, flags)

    @property
    def header(self):
        return open_batch(self)

    @property
    def is_intact(self):
        cdef uint32_t crc = c_crc32c(0, &self.bytes[21], self.size - 21)
        return crc == <uint32_t>int.from_bytes(self.bytes[17:21], "big")


cdef Batch view_batch(const lane_batch *b):
    if b == NULL:
        return None
    cdef Batch view = Batch.__new__(Batch)
    view.home, view.bytes, view.size = slab_ref(b.home), b.bytes, b.size
    view.from_offset, view.why = b.source_offset, VERDICTS[b.why]
    return view


cdef add_intents(list found, const lane_batch *b):
    """(source offset, sequence) of each run of the batch."""
    cdef int64_t sequence = b.sequence
    if b.runs == NULL:
        found.append((b.source_offset, b.sequence))
        return
    for i in range(b.run_count):
        found.append((b.runs[i].source_offset, sequence & 0x7fffffff))
        sequence += b.runs[i].count


cdef class Made:
    """A batch made of records that a `Scratch` has put together."""
    cdef slab *home
    cdef record_run *runs
    cdef uint32_t run_count
    cdef readonly uint32_t count
    cdef readonly int64_t max_timestamp

    def __cinit__(self, Pool pool not None, Scratch scratch not None, int codec, const uint8_t[::1] section):
        cdef built *output = &scratch.c.output
        cdef size_t size = BATCH_HEADER_SIZE + section.shape[0]
        if size > SLAB_SIZE_MAX or output.count < 1:
            raise ValueError(f"no batch of {output.count} records and {size} bytes")
        self.home = slab_acquire(pool.pool, size)
        self.runs = <record_run *>malloc(output.run_count * sizeof(record_run))
        if self.home == NULL or self.runs == NULL:
            raise MemoryError
        memcpy(self.runs, output.runs, output.run_count * sizeof(record_run))
        self.run_count, self.count, self.max_timestamp = output.run_count, output.count, output.max_timestamp
        memcpy(&self.home.data[BATCH_HEADER_SIZE], &section[0], section.shape[0])
        cdef batch b
        memset(&b, 0, sizeof(b))
        b.size, b.attributes, b.count, b.last_offset_delta = size, codec, output.count, output.count - 1
        b.base_timestamp, b.max_timestamp = output.base_timestamp, output.max_timestamp
        batch_write(&b, self.home.data)

    def __dealloc__(self):
        if self.home != NULL:
            slab_unref(self.home)
        free(self.runs)

    def __len__(self):
        return self.home.size


PRODUCER_KINDS = ("unknown", "own", "opened", "skipped")


cdef class Producers:
    """Which producers of a source are links: one table for the lanes of a link."""
    cdef producers *c

    def __cinit__(self):
        self.c = producers_new()
        if self.c == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.c != NULL:
            producers_unref(self.c)

    def add(self, int64_t producer_id, str kind):
        cdef int index = PRODUCER_KINDS.index(kind)
        producers_add(self.c, producer_id, <producer_kind>index)

    def __getitem__(self, int64_t producer_id):
        return PRODUCER_KINDS[producers_find(self.c, producer_id)]
