#include "segments.h"

#include <stdlib.h>
#include <string.h>

enum { SEGMENTS_MIN = 4 };

static void grow(segments *s) {
    if (s->count < s->capacity) return;
    s->capacity = s->capacity ? s->capacity * 2 : SEGMENTS_MIN;
    s->items = realloc(s->items, s->capacity * sizeof *s->items);
    if (!s->items) abort();
}

bool segments_add(segments *s, int64_t source, int64_t target, int64_t length) {
    if (source < 0 || target < 0 || length <= 0) return false;
    if (source > INT64_MAX - length || target > INT64_MAX - length) return false;
    if (s->count) {
        segment *last = &s->items[s->count - 1];
        int64_t source_end = last->source + last->length, target_end = last->target + last->length;
        if (source < source_end || target < target_end) return false;
        if (source == source_end && target == target_end) {
            last->length += length;
            return true;
        }
    }
    if (s->count == SEGMENTS_MAX) return false;
    grow(s);
    s->items[s->count++] = (segment){source, target, length};
    return true;
}

void segments_drop(segments *s, uint32_t n) {
    if (!s->count) return;
    if (n >= s->count) n = s->count - 1;
    s->count -= n;
    memmove(s->items, s->items + n, s->count * sizeof *s->items);
}

void segments_free(segments *s) {
    free(s->items);
    *s = (segments){0};
}
