/* What is done to records on the way: a list of steps, each with a test of the record it is for.
 *
 * Steps are taken in order, and each sees what those before it have made of the headers; key, value, time and size are
 * as they came. Whoever makes a recipe keeps the bytes that its steps and tests point at for as long as it lives.
 *
 * Names of headers may be matched by what C cannot work out: a regular expression. A step with `asks` therefore has a
 * table of the names it was told of. At a name that it does not know the recipe stops and asks, is told (recipe_tell),
 * and is applied to that record again: few names are asked for, and each of them once.
 */
#ifndef REPLICATOR_RECIPE_H
#define REPLICATOR_RECIPE_H

#include "records.h"

typedef struct {
    const uint8_t *bytes; /* NULL: null */
    uint32_t size;
} span;

typedef struct {
    span name, value;
} header_view;

enum {
    RECIPE_TESTS_MAX = 1024,
    RECIPE_DEPTH_MAX = 8,
    RECIPE_STEPS_MAX = 1024,
    RECIPE_HEADERS_MAX = 1 << 16, /* of one record, if a recipe looks at them */
    RECIPE_NAMES_MAX = 1 << 12,   /* that a step remembers at a time */
    RECIPE_NAMES_BYTES_MAX = 1 << 22,
    RECIPE_HOPS_MAX = 4, /* steps that add a hop */
};

typedef enum {
    TEST_TOMBSTONE, /* the value is null */
    TEST_KEY_NULL,
    TEST_KEY,          /* a null key matches nothing */
    TEST_HEADER,       /* there is one of that name */
    TEST_HEADER_VALUE, /* one of that name matches; a null value matches nothing */
    TEST_TIMESTAMP,    /* from <= time < to */
    TEST_SIZE,         /* the record, its length prefix included, has more than `from` bytes */
    TEST_NOT,
    TEST_ANY,
    TEST_ALL,
} test_kind;

typedef enum { MATCH_EQUALS, MATCH_PREFIX, MATCH_SUFFIX, MATCH_CONTAINS } match_kind;

/* Tests stand in one list, each followed by those inside it. */
typedef struct {
    test_kind kind;
    match_kind match;
    span name, wanted;
    int64_t from, to;
    uint32_t end; /* the index behind the last one inside it */
} test;

typedef enum {
    STEP_DROP,
    STEP_KEEP,
    STEP_DIVERT,
    STEP_HEADER_ADD,
    STEP_HEADER_SET,    /* takes all of that name out and adds one at the end */
    STEP_HEADER_DROP,
    STEP_HEADER_RENAME, /* where it stands */
    STEP_PROVENANCE,    /* replicator.source.* unless they are there, and one more hop */
    STEP_DROP_HOPS,     /* leaves records out that have been where `name` says */
    STEP_HOP,           /* the record has been where `name` says: one more hop, unless it is there already */
} step_kind;

enum { NO_TEST = UINT32_MAX };

typedef struct {
    step_kind kind;
    uint32_t test; /* NO_TEST: for every record */
    bool asks;     /* HEADER_DROP, HEADER_RENAME: names are matched by whoever is asked, not by equality */
    span name;     /* of the header; PROVENANCE, DROP_HOPS and HOP: the cluster's id */
    span value;    /* ADD, SET: the value; RENAME: the new name; PROVENANCE: the topic */
    span extra;    /* PROVENANCE: the partition, in digits */
} recipe_step;

/* NULL: out of memory. */
recipe *recipe_new(void);
void recipe_free(recipe *rc);

/* Adds a test; the tests inside it come next, and then its end. The index; NO_TEST when there is no room. */
uint32_t recipe_add_test(recipe *rc, const test *t);
void recipe_end_test(recipe *rc, uint32_t index);

/* The last step added. False when there is no room for it, for a second PROVENANCE, or for one more that adds a hop. */
bool recipe_add_step(recipe *rc, const recipe_step *step);

/* The headers of the record at hand. All zero is an empty one. */
struct header_list {
    header_view *items;
    uint32_t count, capacity;
    bool is_loaded, is_changed;
    uint8_t digits[20]; /* of the source offset */
    uint8_t *hops[RECIPE_HOPS_MAX]; /* a list for each step that adds a hop: the one before may still be a header */
    size_t hops_capacity[RECIPE_HOPS_MAX];
    uint32_t hops_used;
    uint32_t asking; /* the step that asks */
    span asked;      /* for this name */
};

void header_list_free(header_list *h);

typedef enum {
    RECIPE_PASS,
    RECIPE_LEAVE_OUT,
    RECIPE_DIVERT,
    RECIPE_ASKS,
    RECIPE_TOO_MANY, /* headers */
    RECIPE_NO_MEMORY,
} recipe_outcome;

/* Applies all steps. If h->is_changed the record's headers are now those of `h`; `step` is the one that left it out. */
recipe_outcome recipe_apply(const recipe *rc, const record *r, header_list *h, uint32_t *step);

/* Headers as they stand in a record, their count first. header_list_write needs header_list_size bytes. */
size_t header_list_size(const header_list *h);
uint8_t *header_list_write(const header_list *h, uint8_t *p);

typedef enum { NAME_STAYS, NAME_GOES, NAME_CHANGES } name_answer;

/* Answers what a step asked; `new_name` is for NAME_CHANGES. Everything is copied. False when the step's table is full
 * (recipe_forget makes room) or memory is out. */
bool recipe_tell(recipe *rc, uint32_t step, span name, name_answer answer, span new_name);
void recipe_forget(recipe *rc, uint32_t step);

#endif
