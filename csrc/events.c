#include "events.h"

#include <stdlib.h>

event *event_add(event_list *events, lane *l, event_kind kind) {
    if (events->count == events->capacity) {
        events->capacity = events->capacity ? events->capacity * 2 : 8;
        events->items = realloc(events->items, events->capacity * sizeof *events->items);
        if (!events->items) abort();
    }
    event *e = &events->items[events->count++];
    *e = (event){.lane = lane_ref(l), .kind = kind};
    return e;
}

void event_list_clear(event_list *events) {
    while (events->count) lane_unref(events->items[--events->count].lane);
}

void event_list_free(event_list *events) {
    event_list_clear(events);
    free(events->items);
    *events = (event_list){0};
}
