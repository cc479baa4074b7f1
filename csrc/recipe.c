#define _GNU_SOURCE /* memmem */
#include "recipe.h"

#include <stdlib.h>

#include "bytes.h"

/* The answers that a step was given, by name: open addressing, at most half full. */
typedef struct {
    span name, new_name; /* one piece of memory; NULL: a free place */
    name_answer answer;
} name_entry;

typedef struct {
    name_entry *entries;
    uint32_t capacity, count;
    size_t bytes;
} name_table;

typedef struct {
    recipe_step is;
    bool needs_headers;
    name_table names;
} step;

struct recipe {
    test *tests;
    step *steps;
    uint32_t test_count, step_count;
    bool has_provenance;
    uint32_t hop_count;
};

static const span SOURCE_CLUSTER = {(const uint8_t *)"replicator.source.cluster", 25};
static const span SOURCE_TOPIC = {(const uint8_t *)"replicator.source.topic", 23};
static const span SOURCE_PARTITION = {(const uint8_t *)"replicator.source.partition", 27};
static const span SOURCE_OFFSET = {(const uint8_t *)"replicator.source.offset", 24};
static const span HOPS = {(const uint8_t *)"replicator.hops", 15};

static bool equal(span a, span b) { return a.size == b.size && !memcmp(a.bytes, b.bytes, a.size); }

/* ---- making one ---- */

recipe *recipe_new(void) { return calloc(1, sizeof(recipe)); }

void recipe_free(recipe *rc) {
    for (uint32_t i = 0; i < rc->step_count; i++) {
        recipe_forget(rc, i);
        free(rc->steps[i].names.entries);
    }
    free(rc->tests);
    free(rc->steps);
    free(rc);
}

uint32_t recipe_add_test(recipe *rc, const test *t) {
    if (rc->test_count == RECIPE_TESTS_MAX) return NO_TEST;
    test *tests = realloc(rc->tests, (rc->test_count + 1) * sizeof *tests);
    if (!tests) return NO_TEST;
    rc->tests = tests;
    tests[rc->test_count] = *t;
    return rc->test_count++;
}

void recipe_end_test(recipe *rc, uint32_t index) { rc->tests[index].end = rc->test_count; }

static bool looks_at_headers(const recipe *rc, const recipe_step *s) {
    if (s->kind >= STEP_HEADER_ADD) return true;
    if (s->test == NO_TEST) return false;
    for (uint32_t i = s->test; i < rc->tests[s->test].end; i++)
        if (rc->tests[i].kind == TEST_HEADER || rc->tests[i].kind == TEST_HEADER_VALUE) return true;
    return false;
}

bool recipe_add_step(recipe *rc, const recipe_step *s) {
    bool adds_hop = s->kind == STEP_PROVENANCE || s->kind == STEP_HOP;
    if (rc->step_count == RECIPE_STEPS_MAX || (s->kind == STEP_PROVENANCE && rc->has_provenance)) return false;
    if (adds_hop && rc->hop_count == RECIPE_HOPS_MAX) return false;
    step *steps = realloc(rc->steps, (rc->step_count + 1) * sizeof *steps);
    if (!steps) return false;
    rc->steps = steps;
    steps[rc->step_count++] = (step){.is = *s, .needs_headers = looks_at_headers(rc, s)};
    rc->has_provenance |= s->kind == STEP_PROVENANCE;
    rc->hop_count += adds_hop;
    return true;
}

/* ---- names ---- */

static uint64_t hash_of(span s) {
    const uint64_t odd = 0x9e3779b97f4a7c15;
    uint64_t hash = s.size * odd, piece;
    for (uint32_t at = 0; at < s.size; at += 8) {
        piece = 0;
        memcpy(&piece, s.bytes + at, s.size - at < 8 ? s.size - at : 8);
        hash = (hash ^ piece) * odd;
        hash ^= hash >> 32;
    }
    return hash;
}

/* Where the name is, or would be. The table has a free place. */
static name_entry *find_name(const name_table *t, span name) {
    uint32_t mask = t->capacity - 1, at = (uint32_t)hash_of(name) & mask;
    while (t->entries[at].name.bytes && !equal(t->entries[at].name, name)) at = (at + 1) & mask;
    return &t->entries[at];
}

static bool grow_table(name_table *t) {
    if (2 * (t->count + 1) <= t->capacity) return true;
    name_table grown = {.capacity = t->capacity ? 2 * t->capacity : 16, .count = t->count, .bytes = t->bytes};
    grown.entries = calloc(grown.capacity, sizeof *grown.entries);
    if (!grown.entries) return false;
    for (uint32_t i = 0; i < t->capacity; i++)
        if (t->entries[i].name.bytes) *find_name(&grown, t->entries[i].name) = t->entries[i];
    free(t->entries);
    *t = grown;
    return true;
}

bool recipe_tell(recipe *rc, uint32_t index, span name, name_answer answer, span new_name) {
    name_table *t = &rc->steps[index].names;
    size_t bytes = 1 + (size_t)name.size + new_name.size;
    if (t->count == RECIPE_NAMES_MAX || t->bytes + bytes > RECIPE_NAMES_BYTES_MAX || !grow_table(t)) return false;
    name_entry *place = find_name(t, name);
    if (place->name.bytes) return true;
    uint8_t *copy = malloc(bytes);
    if (!copy) return false;
    memcpy(copy, name.bytes, name.size);
    if (new_name.size) memcpy(copy + name.size, new_name.bytes, new_name.size);
    *place = (name_entry){{copy, name.size}, {copy + name.size, new_name.size}, answer};
    t->count++;
    t->bytes += bytes;
    return true;
}

void recipe_forget(recipe *rc, uint32_t index) {
    name_table *t = &rc->steps[index].names;
    for (uint32_t i = 0; i < t->capacity; i++) {
        free((uint8_t *)t->entries[i].name.bytes);
        t->entries[i] = (name_entry){0};
    }
    t->count = 0;
    t->bytes = 0;
}

/* False: whoever made the recipe must be asked. */
static bool answer_to(const step *s, span name, name_answer *answer, span *new_name) {
    *new_name = s->is.value;
    if (!s->is.asks) {
        *answer = !equal(name, s->is.name) ? NAME_STAYS : s->is.kind == STEP_HEADER_DROP ? NAME_GOES : NAME_CHANGES;
        return true;
    }
    const name_entry *known = s->names.count ? find_name(&s->names, name) : NULL;
    if (!known || !known->name.bytes) return false;
    *answer = known->answer;
    *new_name = known->new_name;
    return true;
}

/* ---- headers ---- */

static bool room_for_headers(header_list *h, uint32_t count) {
    if (count <= h->capacity) return true;
    uint32_t capacity = count + 32 > 2 * h->capacity ? count + 32 : 2 * h->capacity;
    header_view *items = realloc(h->items, capacity * sizeof *items);
    if (!items) return false;
    h->items = items;
    h->capacity = capacity;
    return true;
}

static span read_view(reader *in, bool nullable) {
    int32_t size = read_varint(in);
    if (nullable && size == -1) return (span){0};
    const uint8_t *bytes = read_span(in, size < 0 ? SIZE_MAX : (size_t)size);
    return (span){bytes ? bytes : in->end, bytes ? (uint32_t)size : 0};
}

/* They were walked already, so what is read here is sound. */
static recipe_outcome load_headers(header_list *h, const record *r) {
    reader in = {r->headers, r->end, false};
    uint32_t count = (uint32_t)read_varint(&in);
    if (count > RECIPE_HEADERS_MAX) return RECIPE_TOO_MANY;
    if (!room_for_headers(h, count)) return RECIPE_NO_MEMORY;
    for (h->count = 0; h->count < count; h->count++) {
        span name = read_view(&in, false);
        h->items[h->count] = (header_view){name, read_view(&in, true)};
    }
    h->is_loaded = true;
    return RECIPE_PASS;
}

static recipe_outcome add_header(header_list *h, span name, span value) {
    if (h->count == RECIPE_HEADERS_MAX) return RECIPE_TOO_MANY;
    if (!room_for_headers(h, h->count + 1)) return RECIPE_NO_MEMORY;
    h->items[h->count++] = (header_view){name, value};
    h->is_changed = true;
    return RECIPE_PASS;
}

/* The last one of that name, or NULL. */
static header_view *find_header(const header_list *h, span name) {
    for (uint32_t i = h->count; i--;)
        if (equal(h->items[i].name, name)) return &h->items[i];
    return NULL;
}

static recipe_outcome set_header(header_list *h, span name, span value) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < h->count; i++)
        if (!equal(h->items[i].name, name)) h->items[left++] = h->items[i];
    h->count = left;
    return add_header(h, name, value);
}

static recipe_outcome match_names(const step *s, header_list *h) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < h->count; i++) {
        header_view found = h->items[i];
        name_answer answer;
        span new_name;
        if (!answer_to(s, found.name, &answer, &new_name)) {
            h->asked = found.name;
            return RECIPE_ASKS;
        }
        if (answer != NAME_STAYS) h->is_changed = true;
        if (answer == NAME_CHANGES) found.name = new_name;
        if (answer != NAME_GOES) h->items[left++] = found;
    }
    h->count = left;
    return RECIPE_PASS;
}

size_t header_list_size(const header_list *h) {
    size_t size = varint_size(h->count);
    for (uint32_t i = 0; i < h->count; i++) {
        span name = h->items[i].name, value = h->items[i].value;
        size += varint_size(name.size) + name.size + (value.bytes ? varint_size(value.size) : 1) + value.size;
    }
    return size;
}

uint8_t *header_list_write(const header_list *h, uint8_t *p) {
    p = store_varint(p, h->count);
    for (uint32_t i = 0; i < h->count; i++) {
        span name = h->items[i].name, value = h->items[i].value;
        p = store_varint(p, name.size);
        memcpy(p, name.bytes, name.size);
        p = store_varint(p + name.size, value.bytes ? (int64_t)value.size : -1);
        if (value.size) memcpy(p, value.bytes, value.size);
        p += value.size;
    }
    return p;
}

void header_list_free(header_list *h) {
    free(h->items);
    for (uint32_t i = 0; i < RECIPE_HOPS_MAX; i++) free(h->hops[i]);
    *h = (header_list){0};
}

/* ---- provenance ---- */

static span digits_of(header_list *h, int64_t offset) {
    uint8_t *end = h->digits + sizeof h->digits, *p = end;
    for (uint64_t left = (uint64_t)offset; p == end || left; left /= 10) *--p = (uint8_t)('0' + left % 10);
    return (span){p, (uint32_t)(end - p)};
}

static recipe_outcome add_hop(header_list *h, span cluster) {
    header_view *hops = find_header(h, HOPS);
    if (!hops) return add_header(h, HOPS, cluster);
    h->is_changed = true;
    size_t before = hops->value.size, size = before + 1 + cluster.size;
    if (!before) return hops->value = cluster, RECIPE_PASS;
    uint32_t list = h->hops_used++;
    if (size > h->hops_capacity[list]) {
        uint8_t *grown = realloc(h->hops[list], size);
        if (!grown) return RECIPE_NO_MEMORY;
        h->hops[list] = grown;
        h->hops_capacity[list] = size;
    }
    memcpy(h->hops[list], hops->value.bytes, before);
    h->hops[list][before] = ',';
    memcpy(h->hops[list] + before + 1, cluster.bytes, cluster.size);
    hops->value = (span){h->hops[list], (uint32_t)size};
    return RECIPE_PASS;
}

static recipe_outcome say_where_from(header_list *h, const recipe_step *s, int64_t offset) {
    const header_view said[] = {{SOURCE_CLUSTER, s->name},
                                {SOURCE_TOPIC, s->value},
                                {SOURCE_PARTITION, s->extra},
                                {SOURCE_OFFSET, digits_of(h, offset)}};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        if (find_header(h, said[i].name)) continue;
        recipe_outcome outcome = add_header(h, said[i].name, said[i].value);
        if (outcome != RECIPE_PASS) return outcome;
    }
    return add_hop(h, s->name);
}

static bool has_hop(span hops, span cluster) {
    const uint8_t *at = hops.bytes, *end = at + hops.size;
    while (at < end) {
        const uint8_t *comma = memchr(at, ',', (size_t)(end - at));
        const uint8_t *hop_end = comma ? comma : end;
        if (equal((span){at, (uint32_t)(hop_end - at)}, cluster)) return true;
        at = hop_end + 1;
    }
    return false;
}

static bool has_been_at(const header_list *h, span cluster) {
    for (uint32_t i = 0; i < h->count; i++)
        if (equal(h->items[i].name, HOPS) && has_hop(h->items[i].value, cluster)) return true;
    return false;
}

/* ---- tests ---- */

static bool matches(match_kind match, span found, span wanted) {
    if (!found.bytes || found.size < wanted.size) return false;
    uint32_t beyond = found.size - wanted.size;
    switch (match) {
        case MATCH_EQUALS: return !beyond && !memcmp(found.bytes, wanted.bytes, wanted.size);
        case MATCH_PREFIX: return !memcmp(found.bytes, wanted.bytes, wanted.size);
        case MATCH_SUFFIX: return !memcmp(found.bytes + beyond, wanted.bytes, wanted.size);
        case MATCH_CONTAINS: return memmem(found.bytes, found.size, wanted.bytes, wanted.size) != NULL;
    }
    return false;
}

static bool header_matches(const header_list *h, const test *t) {
    for (uint32_t i = 0; i < h->count; i++)
        if (equal(h->items[i].name, t->name) && matches(t->match, h->items[i].value, t->wanted)) return true;
    return false;
}

static bool holds(const recipe *rc, uint32_t index, const record *r, const header_list *h);

/* Whether any, or else every, test inside this one holds. */
static bool holds_inside(const recipe *rc, uint32_t index, bool any, const record *r, const header_list *h) {
    for (uint32_t i = index + 1; i < rc->tests[index].end; i = rc->tests[i].end)
        if (holds(rc, i, r, h) == any) return any;
    return !any;
}

static bool holds(const recipe *rc, uint32_t index, const record *r, const header_list *h) {
    const test *t = &rc->tests[index];
    switch (t->kind) {
        case TEST_TOMBSTONE: return !r->value;
        case TEST_KEY_NULL: return !r->key;
        case TEST_KEY: return matches(t->match, (span){r->key, r->key_size}, t->wanted);
        case TEST_HEADER: return find_header(h, t->name) != NULL;
        case TEST_HEADER_VALUE: return header_matches(h, t);
        case TEST_TIMESTAMP: return t->from <= r->timestamp && (r->timestamp < t->to || t->to == INT64_MAX);
        case TEST_SIZE: return r->end - r->start > t->from;
        case TEST_NOT: return !holds(rc, index + 1, r, h);
        case TEST_ANY: return holds_inside(rc, index, true, r, h);
        case TEST_ALL: return holds_inside(rc, index, false, r, h);
    }
    return false;
}

/* ---- applying ---- */

static recipe_outcome take_step(const step *s, const record *r, header_list *h) {
    switch (s->is.kind) {
        case STEP_DROP: return RECIPE_LEAVE_OUT;
        case STEP_KEEP: return RECIPE_PASS;
        case STEP_DIVERT: return RECIPE_DIVERT;
        case STEP_HEADER_ADD: return add_header(h, s->is.name, s->is.value);
        case STEP_HEADER_SET: return set_header(h, s->is.name, s->is.value);
        case STEP_HEADER_DROP:
        case STEP_HEADER_RENAME: return match_names(s, h);
        case STEP_PROVENANCE: return say_where_from(h, &s->is, r->offset);
        case STEP_DROP_HOPS: return has_been_at(h, s->is.name) ? RECIPE_LEAVE_OUT : RECIPE_PASS;
        case STEP_HOP: return has_been_at(h, s->is.name) ? RECIPE_PASS : add_hop(h, s->is.name);
    }
    return RECIPE_PASS;
}

recipe_outcome recipe_apply(const recipe *rc, const record *r, header_list *h, uint32_t *index) {
    h->is_loaded = h->is_changed = false;
    h->hops_used = 0;
    recipe_outcome outcome = RECIPE_PASS;
    uint32_t i = 0;
    for (; i < rc->step_count && outcome == RECIPE_PASS; i++) {
        const step *s = &rc->steps[i];
        if (s->needs_headers && !h->is_loaded) outcome = load_headers(h, r);
        if (outcome != RECIPE_PASS) break;
        if (s->is.test == NO_TEST || holds(rc, s->is.test, r, h))
            outcome = take_step(s, r, h);
        else if (s->is.kind == STEP_KEEP)
            outcome = RECIPE_LEAVE_OUT;
    }
    *index = h->asking = i ? i - 1 : 0;
    return outcome;
}
