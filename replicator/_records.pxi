# Records, for what is rebuilt: included by _core.pyx. Contracts: _core.pyi, csrc/records.h, csrc/recipe.h.
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport INT32_MAX, INT64_MAX, INT64_MIN

import re

cdef enum:
    RECORD_BYTES_MIN = 7

Diverted = namedtuple("Diverted", "source_offset timestamp key value headers reason")
Replacement = namedtuple("Replacement", "key value headers timestamp", defaults=(None, None))


class BadRecords(ValueError):
    pass


cdef packed_records packed(header, payload, int64_t first_offset, int64_t count) except *:
    """Views of both, good as long as the caller holds `memoryview`s of them."""
    cdef Py_buffer view
    cdef packed_records whole
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    whole.header = <const uint8_t *>view.buf
    cdef Py_ssize_t header_size = view.len
    PyBuffer_Release(&view)
    if header_size < BATCH_HEADER_SIZE:
        raise ValueError("shorter than a batch header")
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    whole.payload, whole.payload_size = <const uint8_t *>view.buf, view.len
    PyBuffer_Release(&view)
    whole.first_offset, whole.count = first_offset, count
    return whole


cdef bytes nullable(const uint8_t *content, uint32_t size):
    return content[:size] if content != NULL else None


cdef int64_t varint_at(const uint8_t **at):
    """A number that was walked already."""
    cdef uint64_t value = 0
    cdef unsigned int shift = 0
    cdef uint8_t septet
    while True:
        septet = at[0][0]
        value |= <uint64_t>(septet & 0x7F) << shift
        at[0] += 1
        if not septet & 0x80:
            return <int64_t>(value >> 1) ^ -<int64_t>(value & 1)
        shift += 7


cdef bytes nullable_at(const uint8_t **at):
    cdef int64_t size = varint_at(at)
    if size < 0:
        return None
    at[0] += size
    return (at[0] - size)[:size]


cdef tuple headers_of(const record *r):
    cdef const uint8_t *at = r.headers
    cdef list found = []
    for _ in range(varint_at(&at)):
        name = nullable_at(&at)
        found.append((name, nullable_at(&at)))
    return tuple(found)


cdef diverted_of(const diverted_record *d, tuple steps):
    cdef const record *r = &d.found
    return Diverted(
        r.offset, r.timestamp, nullable(r.key, r.key_size), nullable(r.value, r.value_size), headers_of(r),
        "excluded" if d.step == NO_STEP else steps[d.step][1])


cdef object bad_records(const record_walk *walk):
    where = "the batch's header" if walk.index < 0 else f"record {walk.index}"
    return BadRecords(f"{where} {walk.fault.decode()}")


RECIPE_DEPTH_MAX = 8
RECIPE_BYTES_MAX = 1 << 20

cdef dict STEP_KINDS = {
    "drop": STEP_DROP, "keep": STEP_KEEP, "divert": STEP_DIVERT, "header_add": STEP_HEADER_ADD,
    "header_set": STEP_HEADER_SET, "header_drop": STEP_HEADER_DROP, "header_rename": STEP_HEADER_RENAME,
    "provenance": STEP_PROVENANCE, "drop_hops": STEP_DROP_HOPS, "hop": STEP_HOP,
}
cdef dict STEP_SIZES = {
    "drop": 2, "keep": 2, "divert": 3, "header_add": 4, "header_set": 4, "header_drop": 3, "header_rename": 4,
    "provenance": 4, "drop_hops": 2, "hop": 2,
}
cdef dict TEST_KINDS = {
    ("tombstone", 1): TEST_TOMBSTONE, ("key_null", 1): TEST_KEY_NULL, ("key", 3): TEST_KEY, ("header", 2): TEST_HEADER,
    ("header", 4): TEST_HEADER_VALUE, ("timestamp", 3): TEST_TIMESTAMP, ("size", 2): TEST_SIZE, ("not", 2): TEST_NOT,
}
cdef dict MATCH_KINDS = {
    "equals": MATCH_EQUALS, "prefix": MATCH_PREFIX, "suffix": MATCH_SUFFIX, "contains": MATCH_CONTAINS,
}


cdef span span_of(bytes content):
    cdef span s
    s.bytes, s.size = NULL, 0
    if content is not None:
        s.bytes, s.size = <const uint8_t *>PyBytes_AS_STRING(content), <uint32_t>PyBytes_GET_SIZE(content)
    return s


cdef class Recipe:
    cdef recipe *c
    cdef readonly tuple steps
    cdef list kept  # the bytes that the native recipe points at
    cdef dict patterns  # of the steps that ask: (compiled, replacement or None)

    def __cinit__(self, tuple steps not None):
        self.steps, self.kept, self.patterns = steps, [], {}
        self.c = recipe_new()
        if self.c == NULL:
            raise MemoryError
        for index, step in enumerate(steps):
            self._add_step(index, step)

    def __dealloc__(self):
        if self.c != NULL:
            recipe_free(self.c)

    cdef span _held(self, content, bint nullable=False) except *:
        if content is None and nullable:
            return span_of(None)
        if not isinstance(content, bytes) or len(content) > RECIPE_BYTES_MAX:
            raise ValueError(f"at most {RECIPE_BYTES_MAX} bytes should stand where {content!r:.80} does")
        self.kept.append(content)
        return span_of(content)

    cdef _add_step(self, uint32_t index, step):
        cdef recipe_step s
        memset(&s, 0, sizeof(s))
        action = step[0] if isinstance(step, tuple) and step else None
        if not isinstance(action, str) or action not in STEP_KINDS or len(step) != STEP_SIZES[action]:
            raise ValueError(f"{step!r:.80} is no step: unknown, or with too few or too many parts")
        s.kind, s.test = STEP_KINDS[action], NO_TEST
        if s.kind == STEP_PROVENANCE:
            if not isinstance(step[3], int):
                raise ValueError(f"a partition should stand where {step[3]!r:.80} does")
            s.name, s.value, s.extra = self._held(step[1]), self._held(step[2]), self._held(b"%d" % step[3])
        elif s.kind in (STEP_DROP_HOPS, STEP_HOP):
            s.name = self._held(step[1])
        elif step[len(step) - 1] is not None:
            s.test = self._add_test(step[len(step) - 1], 1)
        if s.kind == STEP_DIVERT and not isinstance(step[1], str):
            raise ValueError(f"a reason should stand where {step[1]!r:.80} does")
        if s.kind in (STEP_HEADER_ADD, STEP_HEADER_SET):
            s.name, s.value = self._held(step[1]), self._held(step[2], True)
        if s.kind in (STEP_HEADER_DROP, STEP_HEADER_RENAME):
            s.asks = isinstance(step[1], str)
            replacement = step[2] if s.kind == STEP_HEADER_RENAME else None
            self._match_names(index, &s, step[1], replacement)
        if not recipe_add_step(self.c, &s):
            raise ValueError(f"step {index} is one too many: of 1024, of one with provenance, or of 4 that add a hop")

    cdef _match_names(self, uint32_t index, recipe_step *s, names, replacement):
        if s.kind == STEP_HEADER_RENAME and not isinstance(replacement, str):
            raise ValueError(f"a name should stand where {replacement!r:.80} does")
        try:
            new_name = self._held((replacement or "").encode("utf-8", "surrogateescape"))
            if s.asks:
                pattern = re.compile(names)
                pattern.sub(replacement or "", "")  # complains of groups that there are not
                self.patterns[index] = (pattern, replacement)
            else:
                s.name, s.value = self._held(names), new_name
        except (re.error, IndexError, OverflowError, UnicodeEncodeError) as error:
            raise ValueError(f"{names!r:.80} to {replacement!r:.80}: {error}") from None

    cdef uint32_t _add_test(self, given, uint32_t depth) except *:
        cdef test t
        cdef uint32_t index
        memset(&t, 0, sizeof(t))
        name = given[0] if isinstance(given, tuple) and given else None
        if name in ("any", "all"):
            t.kind = TEST_ANY if name == "any" else TEST_ALL
        elif not isinstance(name, str) or (name, len(given)) not in TEST_KINDS:
            raise ValueError(f"{given!r:.80} is no test: unknown, or with too few or too many parts")
        else:
            t.kind = TEST_KINDS[(name, len(given))]
        if depth > RECIPE_DEPTH_MAX:
            raise ValueError(f"tests stand inside one another more than {RECIPE_DEPTH_MAX} deep")
        self._fill_test(&t, given)
        index = recipe_add_test(self.c, &t)
        if index == NO_TEST:
            raise ValueError("more than 1024 tests")
        if t.kind in (TEST_NOT, TEST_ANY, TEST_ALL):
            if len(given) < 2:
                raise ValueError(f"{given!r:.80} has nothing to test")
            for inner in given[1:]:
                self._add_test(inner, depth + 1)
        recipe_end_test(self.c, index)
        return index

    cdef _fill_test(self, test *t, tuple given):
        if t.kind in (TEST_HEADER, TEST_HEADER_VALUE):
            t.name = self._held(given[1])
        if t.kind in (TEST_KEY, TEST_HEADER_VALUE):
            operator = given[len(given) - 2]
            if not isinstance(operator, str) or operator not in MATCH_KINDS:
                raise ValueError(f"{operator!r:.80} is none of {', '.join(MATCH_KINDS)}")
            t.match, t.wanted = MATCH_KINDS[operator], self._held(given[len(given) - 1])
        try:
            if t.kind == TEST_SIZE:
                t.start = given[1]
            if t.kind == TEST_TIMESTAMP:
                t.start = INT64_MIN if given[1] is None else given[1]
                t.to = INT64_MAX if given[2] is None else given[2]
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{given!r:.80}: {error}") from None

    cdef bint _answer(self, const header_list *asking) except *:
        """False when there is no room for another name."""
        pattern, replacement = self.patterns[asking.asking]
        cdef bytes name = asking.asked.bytes[:asking.asked.size]
        cdef bytes new_name = None
        cdef name_answer answer = NAME_STAYS
        found = pattern.fullmatch(name.decode("utf-8", "surrogateescape"))
        if found and replacement is None:
            answer = NAME_GOES
        elif found:
            answer = NAME_CHANGES
            new_name = found.expand(replacement).encode("utf-8", "surrogateescape")
        return recipe_tell(self.c, asking.asking, asking.asked, answer, span_of(new_name))


cdef class Columns:
    """Views of a payload that was walked once."""
    cdef readonly object offsets, timestamps
    cdef readonly list keys, values
    cdef object payload
    cdef list header_places  # where in the payload each record's headers begin
    cdef list _headers

    def __init__(self):
        raise TypeError("columns come from Scratch.columns")

    def __len__(self):
        return len(self.keys)

    @property
    def headers(self):
        cdef Py_buffer view
        cdef record r
        if self._headers is None:
            PyObject_GetBuffer(self.payload, &view, PyBUF_SIMPLE)
            try:
                self._headers = []
                for place in self.header_places:
                    r.headers = <const uint8_t *>view.buf + <size_t>place
                    self._headers.append(headers_of(&r))
            finally:
                PyBuffer_Release(&view)
        return self._headers


cdef Columns columns_of(const packed_records *whole, held):
    import numpy as np
    cdef Columns found = Columns.__new__(Columns)
    cdef record_walk walk
    cdef record r
    record_walk_open(&walk, whole)
    rows = min(int(walk.count), int(whole.payload_size // RECORD_BYTES_MIN))  # no more than there can be
    found.offsets, found.timestamps = np.empty(rows, np.int64), np.empty(rows, np.int64)
    cdef int64_t[::1] offsets = found.offsets
    cdef int64_t[::1] timestamps = found.timestamps
    found.keys, found.values, found.header_places, found.payload = [], [], [], held
    while record_walk_next(&walk, &r):
        offsets[walk.index - 1], timestamps[walk.index - 1] = r.offset, r.timestamp
        found.keys.append(view_of(held, whole, r.key, r.key_size))
        found.values.append(view_of(held, whole, r.value, r.value_size))
        found.header_places.append(r.headers - whole.payload)
    if walk.fault != NULL:
        raise bad_records(&walk)
    return found


cdef object view_of(held, const packed_records *whole, const uint8_t *content, uint32_t size):
    return held[content - whole.payload:content - whole.payload + size] if content != NULL else None


cdef int put_number(bytearray out, int64_t number) except -1:
    cdef uint8_t digits[10]
    out += digits[:store_varint(digits, number) - digits]


cdef int put_sized(bytearray out, content) except -1:
    if content is None:
        return put_number(out, -1)
    cdef const uint8_t[::1] view = content
    put_number(out, view.shape[0])
    out += content


cdef bytearray replaced(const record *r, const record_walk *walk, replacement):
    """The record with another key, value and, unless they are None, headers and time."""
    cdef int64_t timestamp, timestamp_delta = r.timestamp_delta
    if replacement.timestamp is not None:
        timestamp = replacement.timestamp
        timestamp_delta = int(timestamp) - int(walk.base_timestamp)
    cdef bytearray body = bytearray((r.attributes,))
    put_number(body, timestamp_delta)
    put_number(body, r.offset_delta)
    put_sized(body, replacement.key)
    put_sized(body, replacement.value)
    if replacement.headers is None:
        body += r.headers[:r.end - r.headers]
    else:
        put_number(body, len(replacement.headers))
        for name, value in replacement.headers:
            if name is None:
                raise ValueError("a header has no name")
            put_sized(body, name)
            put_sized(body, value)
    if len(body) > INT32_MAX:
        raise ValueError("larger than a record can be")
    cdef bytearray out = bytearray()
    put_number(out, len(body))
    out += body
    return out


cdef bytes pack_again(const packed_records *whole, held, keep, dict replacements):
    cdef record_walk walk
    cdef record r
    cdef Py_ssize_t from_here = 0  # what is carried on as it stands: from here to the record at hand
    cdef list pieces = []
    record_walk_open(&walk, whole)
    while record_walk_next(&walk, &r):
        index = walk.index - 1
        kept = index < len(keep) and keep[index]
        replacement = replacements.get(index) if replacements and kept else None
        if kept and replacement is None:
            continue
        pieces.append(held[from_here:r.start - whole.payload])
        from_here = r.end - whole.payload
        if replacement is not None:
            try:
                pieces.append(replaced(&r, &walk, replacement))
            except (AttributeError, BufferError, OverflowError, TypeError, ValueError) as error:
                raise ValueError(f"the replacement of record {index}: {error}") from None
    if walk.fault != NULL:
        raise bad_records(&walk)
    if len(keep) != walk.count or (replacements and not 0 <= min(replacements) <= max(replacements) < walk.count):
        raise ValueError(f"{len(keep)} choices and replacements of {sorted(replacements)} for {walk.count} records")
    pieces.append(held[from_here:])
    return b"".join(pieces)


cdef class Scratch:
    cdef builder c
    cdef list inputs  # what the builder points into
    cdef object excluded  # this, too
    cdef readonly list diverted

    def __cinit__(self):
        self.inputs, self.diverted = [], []

    def __dealloc__(self):
        builder_free(&self.c)

    def clear(self):
        builder_clear(&self.c)
        self.inputs, self.diverted = [], []

    def exclude(self, source_offsets):
        self.excluded = array("q", source_offsets)
        cdef int64_t[::1] offsets = self.excluded
        builder_exclude(&self.c, &offsets[0] if offsets.shape[0] else NULL, offsets.shape[0])

    def feed(self, header, payload, int64_t from_offset, Recipe recipe=None, int64_t first_offset=-1,
             int64_t count=-1):
        held = memoryview(payload)
        cdef packed_records whole = packed(header, held, first_offset, count)
        cdef feed_outcome outcome = builder_feed(
            &self.c, &whole, from_offset, recipe.c if recipe is not None else NULL)
        if outcome == FEED_ASKS:
            outcome = self._answer(recipe)
        if outcome == FEED_BAD:
            raise bad_records(&self.c.walk)
        if outcome == FEED_NO_MEMORY:
            raise MemoryError
        self.inputs.append(held)
        for i in range(self.c.diverted_count):
            self.diverted.append(diverted_of(&self.c.diverted[i], recipe.steps if recipe is not None else ()))

    cdef feed_outcome _answer(self, Recipe recipe) except *:
        """Answers all that the recipe asks. A record with more names than a step can remember cannot be dealt with."""
        cdef feed_outcome outcome = FEED_ASKS
        forgotten_at = None
        try:
            while outcome == FEED_ASKS:
                if not recipe._answer(self.c.headers):
                    here = (self.c.walk.index, self.c.headers.asking)
                    if forgotten_at == here:
                        raise BadRecords(
                            f"record {here[0]} has header names that are too many or too long to be matched")
                    forgotten_at = here
                    recipe_forget(recipe.c, self.c.headers.asking)
                    continue
                outcome = builder_go_on(&self.c)
        except BaseException:
            builder_give_up(&self.c)
            raise
        return outcome

    def columns(self, header, payload, int64_t first_offset=-1):
        held = memoryview(payload).toreadonly()
        cdef packed_records whole = packed(header, held, first_offset, -1)
        return columns_of(&whole, held)

    def pack(self, header, payload, keep, dict replacements not None):
        held = memoryview(payload)
        cdef packed_records whole = packed(header, held, -1, -1)
        return pack_again(&whole, held, keep, replacements)

    def next(self, uint32_t bytes_max, uint32_t runs_max=4096):
        if builder_next(&self.c, bytes_max, runs_max):
            return True
        if is_out_of_memory(&self.c):
            raise MemoryError
        return False

    def retry(self):
        builder_retry(&self.c)

    @property
    def fed(self):
        return self.c.wanted_count

    @property
    def untouched(self):
        return bool(self.c.untouched)

    @property
    def records(self):
        if not self.c.output.size:
            return memoryview(b"")
        return PyMemoryView_FromMemory(<char *>self.c.output.bytes, self.c.output.size, PyBUF_READ)

    @property
    def record_bytes(self):
        return self.c.output.size

    @property
    def count(self):
        return self.c.output.count

    @property
    def base_timestamp(self):
        return self.c.output.base_timestamp

    @property
    def max_timestamp(self):
        return self.c.output.max_timestamp

    @property
    def runs(self):
        cdef const record_run *runs = self.c.output.runs
        return tuple([(runs[i].source_offset, runs[i].count) for i in range(self.c.output.run_count)])


def merge_batches(parts):
    cdef list held = [memoryview(part) for part in parts]
    cdef merge_part *views = <merge_part *>calloc(len(held) + 1, sizeof(merge_part))
    cdef size_t room = 0
    cdef uint32_t size
    cdef const uint8_t[::1] view
    if views == NULL:
        raise MemoryError
    try:
        for i, part in enumerate(held):
            view = part
            if view.shape[0] < BATCH_HEADER_SIZE or view.shape[0] > SLAB_SIZE_MAX:
                return None
            views[i].bytes, views[i].size = &view[0], <uint32_t>view.shape[0]
            room += views[i].size + MERGE_BYTES_A_RECORD_MAX * (views[i].size - BATCH_HEADER_SIZE) // RECORD_BYTES_MIN
        if room > 2**32 - 1:
            return None
        merged = bytearray(room)
        size = records_merge(views, <uint32_t>len(held), <uint8_t *>PyByteArray_AS_STRING(merged), <uint32_t>room)
        return bytes(merged[:size]) if size else None
    finally:
        free(views)
