# Part of _core.pyx: bytes between sockets and the core.

cdef enum:
    PEEK = 512  # small answers arrive whole in the read that finds their length
    PARTS_A_CALL = 1024  # IOV_MAX


cdef class Transport:
    """Kafka frames over one plain non-blocking socket: reads into slabs, sends from wherever the bytes stand."""
    cdef int fd
    cdef Pool pool
    cdef slab *frame
    cdef size_t filled
    cdef uint8_t peeked[PEEK]
    cdef size_t peeked_bytes
    cdef iovec *parts
    cdef size_t first, count, capacity
    cdef list keep
    cdef readonly uint64_t received_bytes, sent_bytes

    def __cinit__(self, int fd, Pool pool not None):
        self.fd, self.pool, self.keep = fd, pool, []

    def __dealloc__(self):
        self.drop()
        free(self.parts)

    cdef drop(self):
        if self.frame != NULL:
            slab_unref(self.frame)
            self.frame = NULL
        self.first = self.count = 0

    def close(self):
        """Forgets what was to be sent and what was half received; the caller closes the socket."""
        self.drop()
        self.keep.clear()
        self.fd = -1

    # ---- the seam for other transports: these two, non-blocking, -1 with errno ----

    cdef ssize_t recv_some(self, void *into, size_t room) noexcept nogil:
        return c_recv(self.fd, into, room, MSG_DONTWAIT)

    cdef ssize_t send_some(self, iovec *parts, size_t count) noexcept nogil:
        cdef msghdr message
        memset(&message, 0, sizeof(message))
        message.msg_iov, message.msg_iovlen = parts, count
        return c_sendmsg(self.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)

    # ---- receiving ----

    cdef ssize_t read_into(self, void *into, size_t room) except -2:
        cdef ssize_t n
        while True:
            n = self.recv_some(into, room)
            if n > 0:
                self.received_bytes += n
                return n
            if n == 0:
                raise ConnectionResetError("closed by the peer")
            if errno == EAGAIN:
                return 0
            if errno != EINTR:
                raise OSError(errno, strerror(errno))

    cdef bint begin_frame(self) except -1:
        cdef ssize_t n
        if self.peeked_bytes < 4:
            n = self.read_into(&self.peeked[self.peeked_bytes], PEEK - self.peeked_bytes)
            self.peeked_bytes += n
            if self.peeked_bytes < 4:
                return False
        cdef uint32_t size = (<uint32_t>self.peeked[0] << 24 | <uint32_t>self.peeked[1] << 16
                              | <uint32_t>self.peeked[2] << 8 | self.peeked[3])
        if size < 4 or size > SLAB_SIZE_MAX:
            raise ValueError(f"a frame of {size} bytes: not Kafka, or a broken peer")
        self.frame = slab_acquire(self.pool.pool, size)
        if self.frame == NULL:
            raise MemoryError(f"no memory for a frame of {size} bytes")
        self.filled = min(size, self.peeked_bytes - 4)
        memcpy(self.frame.data, &self.peeked[4], self.filled)
        self.peeked_bytes -= 4 + self.filled
        memmove(self.peeked, &self.peeked[4 + self.filled], self.peeked_bytes)
        return True

    def receive(self, FetchStream stream=None):
        cdef ssize_t n
        cdef fetch_progress progress
        cdef Frame whole
        if self.fd < 0 or (self.frame == NULL and not self.begin_frame()):
            return None
        while True:
            if stream is not None:
                progress = fetch_feed(stream.c, self.frame, self.filled, &stream.events)
                if progress == FETCH_MALFORMED:
                    raise ValueError("malformed Fetch response")
            if self.filled == self.frame.size:
                whole = Frame.__new__(Frame)
                whole.home, self.frame = self.frame, NULL
                return whole
            n = self.read_into(&self.frame.data[self.filled], self.frame.size - self.filled)
            if n == 0:
                return None
            self.filled += n

    # ---- sending ----

    cdef push(self, void *base, size_t size, object owner):
        cdef iovec *parts
        if size == 0:
            return  # sending nothing would look like no progress
        if self.count == self.capacity:
            parts = <iovec *>realloc(self.parts, (self.capacity * 2 + 64) * sizeof(iovec))
            if parts == NULL:
                raise MemoryError
            self.parts, self.capacity = parts, self.capacity * 2 + 64
        self.parts[self.count].iov_base, self.parts[self.count].iov_len = base, size
        self.count += 1
        if owner is not None:
            self.keep.append(owner)

    def send(self, bytes data not None):
        self.push(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), data)

    def flush(self):
        cdef ssize_t n
        while self.first < self.count:
            n = self.send_some(&self.parts[self.first], min(self.count - self.first, <size_t>PARTS_A_CALL))
            if n < 0 and errno != EINTR:
                if errno == EAGAIN:
                    return False
                raise OSError(errno, strerror(errno))
            if n > 0:
                self.sent_bytes += n
                self.advance(n)
        self.first = self.count = 0
        self.keep.clear()
        return True

    cdef void advance(self, size_t n) noexcept:
        cdef iovec *part
        while n:
            part = &self.parts[self.first]
            if n < part.iov_len:
                part.iov_base = <uint8_t *>part.iov_base + n
                part.iov_len -= n
                return
            n -= part.iov_len
            self.first += 1

    @property
    def pending(self):
        return self.first < self.count
