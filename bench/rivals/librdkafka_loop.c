/* The rival to beat: what a good C programmer writes around librdkafka in an afternoon.
 *
 *     librdkafka_loop SOURCE TARGET TOPIC once|follow [c.PROPERTY=VALUE | p.PROPERTY=VALUE]...
 *
 * Consumes a topic's partitions through one queue, many records a call, and produces every record to the same
 * partition of the topic of the same name, with key, value, headers and timestamp. `once` copies what is there when
 * it starts and exits; `follow` goes on until SIGTERM. Every setting is an argument, so that the caller's report can
 * list them all.
 *
 * The library comes in a Python wheel without headers, so the little of its (stable) ABI that is needed is declared
 * here.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef struct rd_kafka_s rd_kafka_t;
typedef struct rd_kafka_conf_s rd_kafka_conf_t;
typedef struct rd_kafka_topic_s rd_kafka_topic_t;
typedef struct rd_kafka_topic_conf_s rd_kafka_topic_conf_t;
typedef struct rd_kafka_queue_s rd_kafka_queue_t;
typedef struct rd_kafka_headers_s rd_kafka_headers_t;

typedef struct {
    int err;
    rd_kafka_topic_t *rkt;
    int32_t partition;
    void *payload;
    size_t len;
    void *key;
    size_t key_len;
    int64_t offset;
    void *opaque;
} rd_kafka_message_t;

typedef struct {
    int32_t id;
    int err;
    int32_t leader;
    int replica_cnt;
    int32_t *replicas;
    int isr_cnt;
    int32_t *isrs;
} rd_kafka_metadata_partition_t;

typedef struct {
    char *topic;
    int partition_cnt;
    rd_kafka_metadata_partition_t *partitions;
    int err;
} rd_kafka_metadata_topic_t;

typedef struct {
    int broker_cnt;
    void *brokers;
    int topic_cnt;
    rd_kafka_metadata_topic_t *topics;
} rd_kafka_metadata_t;

enum { RD_KAFKA_PRODUCER, RD_KAFKA_CONSUMER };
enum { RD_KAFKA_CONF_OK = 0 };
enum { QUEUE_FULL = -184, PARTITION_EOF = -191 };
enum { MSG_F_COPY = 2 };
enum { V_END, V_RKT = 2, V_PARTITION, V_VALUE, V_KEY, V_MSGFLAGS = 7, V_TIMESTAMP, V_HEADERS = 10 };
enum { OFFSET_BEGINNING = -2 };

rd_kafka_conf_t *rd_kafka_conf_new(void);
int rd_kafka_conf_set(rd_kafka_conf_t *, const char *name, const char *value, char *error, size_t error_size);
typedef void delivery_callback(rd_kafka_t *, const rd_kafka_message_t *, void *opaque);
void rd_kafka_conf_set_dr_msg_cb(rd_kafka_conf_t *, delivery_callback *);
rd_kafka_t *rd_kafka_new(int type, rd_kafka_conf_t *, char *error, size_t error_size);
rd_kafka_topic_t *rd_kafka_topic_new(rd_kafka_t *, const char *topic, rd_kafka_topic_conf_t *);
rd_kafka_queue_t *rd_kafka_queue_new(rd_kafka_t *);
int rd_kafka_metadata(
    rd_kafka_t *, int all, rd_kafka_topic_t *, const rd_kafka_metadata_t **, int timeout_ms);
void rd_kafka_metadata_destroy(const rd_kafka_metadata_t *);
int rd_kafka_query_watermark_offsets(
    rd_kafka_t *, const char *topic, int32_t partition, int64_t *low, int64_t *high, int timeout_ms);
int rd_kafka_consume_start_queue(rd_kafka_topic_t *, int32_t partition, int64_t offset, rd_kafka_queue_t *);
rd_kafka_message_t *rd_kafka_consume_queue(rd_kafka_queue_t *, int timeout_ms);
ssize_t rd_kafka_consume_batch_queue(rd_kafka_queue_t *, int timeout_ms, rd_kafka_message_t **, size_t);
int64_t rd_kafka_message_timestamp(const rd_kafka_message_t *, int *type);
int rd_kafka_message_detach_headers(rd_kafka_message_t *, rd_kafka_headers_t **);
void rd_kafka_message_destroy(rd_kafka_message_t *);
int rd_kafka_producev(rd_kafka_t *, ...);
int rd_kafka_poll(rd_kafka_t *, int timeout_ms);
int rd_kafka_flush(rd_kafka_t *, int timeout_ms);
const char *rd_kafka_err2str(int error);

enum { PARTITIONS_MAX = 1024, RECORDS_A_CALL = 10000, WAIT_MS = 100, TIMEOUT_MS = 30000, FLUSH_MS = 120000 };

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
    (void)signal;
    stopped = 1;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "librdkafka_loop: %s: %s\n", what, why);
    exit(1);
}

static void check(const char *what, int error)
{
    if (error)
        die(what, rd_kafka_err2str(error));
}

/* With delivery.report.only.error, only failures come here: a copy with a hole must not look like a success. */
static void on_delivery_failed(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
    (void)rk, (void)opaque;
    check("delivery", message->err);
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
    char error[512];
    if (rd_kafka_conf_set(conf, name, value, error, sizeof error) != RD_KAFKA_CONF_OK)
        die(name, error);
}

/* A client with the arguments that start with `prefix`, "c." or "p.". */
static rd_kafka_t *client(int type, const char *bootstrap, const char *prefix, char **settings)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "bootstrap.servers", bootstrap);
    if (type == RD_KAFKA_PRODUCER)
        rd_kafka_conf_set_dr_msg_cb(conf, on_delivery_failed);
    for (; *settings; settings++) {
        char name[128];
        const char *equals = strchr(*settings, '=');
        if (!equals || (size_t)(equals - *settings) >= sizeof name)
            die(*settings, "expected c.PROPERTY=VALUE or p.PROPERTY=VALUE");
        if (strncmp(*settings, prefix, 2))
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(equals - *settings - 2), *settings + 2);
        set(conf, name, equals + 1);
    }
    char error[512];
    rd_kafka_t *rk = rd_kafka_new(type, conf, error, sizeof error);
    if (!rk)
        die("new client", error);
    return rk;
}

static int partitions_of(rd_kafka_t *rk, rd_kafka_topic_t *topic)
{
    const rd_kafka_metadata_t *metadata;
    check("metadata", rd_kafka_metadata(rk, 0, topic, &metadata, TIMEOUT_MS));
    int count = metadata->topic_cnt == 1 ? metadata->topics[0].partition_cnt : 0;
    rd_kafka_metadata_destroy(metadata);
    if (count < 1 || count > PARTITIONS_MAX)
        die("metadata", "the topic does not exist or has too many partitions");
    return count;
}

static void produce(rd_kafka_t *producer, rd_kafka_topic_t *topic, rd_kafka_message_t *message)
{
    rd_kafka_headers_t *headers = NULL;
    int type, error;
    int64_t timestamp = rd_kafka_message_timestamp(message, &type);
    rd_kafka_message_detach_headers(message, &headers);
    /* The record is copied: cheaper than a delivery report for each to say when its memory is free again. */
    do {
        error = headers
            ? rd_kafka_producev(producer, V_RKT, topic, V_PARTITION, message->partition, V_TIMESTAMP, timestamp,
                  V_KEY, message->key, message->key_len, V_VALUE, message->payload, message->len,
                  V_MSGFLAGS, MSG_F_COPY, V_HEADERS, headers, V_END)
            : rd_kafka_producev(producer, V_RKT, topic, V_PARTITION, message->partition, V_TIMESTAMP, timestamp,
                  V_KEY, message->key, message->key_len, V_VALUE, message->payload, message->len,
                  V_MSGFLAGS, MSG_F_COPY, V_END);
    } while (error == QUEUE_FULL && rd_kafka_poll(producer, 10) >= 0);
    check("produce", error);
}

/* Waits for a record and takes those that have arrived with it. A batch call alone would wait for a full batch or
 * for its whole time-out, which costs either latency or many calls. */
static ssize_t take(rd_kafka_queue_t *queue, rd_kafka_message_t **messages)
{
    messages[0] = rd_kafka_consume_queue(queue, WAIT_MS);
    if (!messages[0])
        return 0;
    ssize_t more = rd_kafka_consume_batch_queue(queue, 0, messages + 1, RECORDS_A_CALL - 1);
    return more < 0 ? 1 : 1 + more;
}

/* Where each partition is read from and up to. Returns how many partitions are not finished yet. */
static int start(rd_kafka_t *consumer, const char *name, rd_kafka_topic_t *topic, rd_kafka_queue_t *queue,
                 bool once, int64_t *ends)
{
    int partitions = partitions_of(consumer, topic), unfinished = 0;
    for (int32_t p = 0; p < partitions; p++) {
        int64_t low, high;
        check("offsets", rd_kafka_query_watermark_offsets(consumer, name, p, &low, &high, TIMEOUT_MS));
        ends[p] = once ? high : INT64_MAX;
        if (once && low == high)
            continue;
        unfinished++;
        if (rd_kafka_consume_start_queue(topic, p, OFFSET_BEGINNING, queue) < 0)
            die("consume", "cannot start");
    }
    return unfinished;
}

int main(int argc, char **argv)
{
    static rd_kafka_message_t *messages[RECORDS_A_CALL];
    static int64_t ends[PARTITIONS_MAX];
    if (argc < 5)
        die("usage", "librdkafka_loop SOURCE TARGET TOPIC once|follow [c.NAME=VALUE | p.NAME=VALUE]...");
    const char *name = argv[3];
    signal(SIGTERM, stop);
    rd_kafka_t *consumer = client(RD_KAFKA_CONSUMER, argv[1], "c.", argv + 5);
    rd_kafka_t *producer = client(RD_KAFKA_PRODUCER, argv[2], "p.", argv + 5);
    rd_kafka_topic_t *source = rd_kafka_topic_new(consumer, name, NULL);
    rd_kafka_topic_t *target = rd_kafka_topic_new(producer, name, NULL);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(consumer);
    int unfinished = start(consumer, name, source, queue, !strcmp(argv[4], "once"), ends);

    while (unfinished && !stopped) {
        ssize_t taken = take(queue, messages);
        for (ssize_t i = 0; i < taken; i++) {
            rd_kafka_message_t *message = messages[i];
            if (!message->err) {
                produce(producer, target, message);
                unfinished -= message->offset + 1 == ends[message->partition];
            } else if (message->err != PARTITION_EOF) {
                check("consume", message->err);
            }
            rd_kafka_message_destroy(message);
        }
        rd_kafka_poll(producer, 0);
    }
    check("flush", rd_kafka_flush(producer, FLUSH_MS));
    return 0; /* the clients are left to the kernel: nothing of theirs is owed to anybody any more */
}
