/* Runs a fuzz target without libFuzzer: the files it is given, and then mutants of them for as long as it is told.
 *
 * A target is a file with LLVMFuzzerInitialize and LLVMFuzzerTestOneInput. With any compiler: link it with this and
 * the core, with sanitizers. With clang: leave this out, and link with -fsanitize=fuzzer,address,undefined. The input
 * that broke something is left behind in fuzz.crash, to be run again.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { INPUT_MAX = 1 << 16, SECONDS_AN_INPUT_MAX = 10 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct {
    uint8_t bytes[INPUT_MAX];
    size_t size;
} input;

static input *seeds, now;
static size_t seed_count;
static uint64_t state = 1;

static uint32_t chance(uint32_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void overwrite(input *in, size_t at, const void *bytes, size_t n) {
    if (at + n <= in->size) memcpy(in->bytes + at, bytes, n);
}

static void lie_about_a_number(input *in, size_t at) {
    static const uint8_t lies[][5] = {{0xff, 0xff, 0xff, 0xff, 0x0f}, {0x7f, 0xff, 0xff, 0xff, 0xff}, {0x80, 0, 0, 0, 0},
                                      {0, 0, 0, 0, 0}, {0, 0, 0, 1, 0}, {0, 0, 1, 0, 0}, {0xff, 0x7f, 0, 0, 0}};
    overwrite(in, at, lies[chance(sizeof lies / sizeof *lies)], 1 + chance(5));
}

static void take_out(input *in, size_t at) {
    size_t n = 1 + chance(16);
    if (at + n > in->size) return;
    memmove(in->bytes + at, in->bytes + at + n, in->size - at - n);
    in->size -= n;
}

static void say_again(input *in, size_t at) {
    size_t n = 1 + chance(200);
    if (at + n > in->size || in->size + n > INPUT_MAX) return;
    memmove(in->bytes + at + n, in->bytes + at, in->size - at);
    in->size += n;
}

static void splice(input *in, size_t at) {
    const input *other = &seeds[chance((uint32_t)seed_count)];
    size_t from = chance((uint32_t)other->size), n = other->size - from;
    if (at + n > INPUT_MAX) return;
    memcpy(in->bytes + at, other->bytes + from, n);
    in->size = at + n;
}

static void mutate(input *in) {
    for (uint32_t rounds = 1 + chance(4); rounds && in->size; rounds--) {
        size_t at = chance((uint32_t)in->size);
        switch (chance(7)) {
            case 0: in->bytes[at] ^= (uint8_t)(1 << chance(8)); break;
            case 1: in->bytes[at] = (uint8_t)chance(256); break;
            case 2:
            case 3: lie_about_a_number(in, at); break;
            case 4: take_out(in, at); break;
            case 5: say_again(in, at); break;
            case 6: splice(in, at); break;
        }
    }
}

/* Also of an input that takes longer than any should. Whoever was interrupted may hold locks: system calls only. */
static void keep_what_broke(int signal_number) {
    static const char words[] = "the input is in fuzz.crash\n";
    int file = open("fuzz.crash", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (write(file, now.bytes, now.size) == (ssize_t)now.size && write(STDERR_FILENO, words, sizeof words - 1) > 0)
        close(file);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void run(const input *in) {
    now = *in;
    alarm(SECONDS_AN_INPUT_MAX);
    LLVMFuzzerTestOneInput(now.bytes, now.size);
}

static void read_seed(const char *path, input *in) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    in->size = fread(in->bytes, 1, INPUT_MAX, file);
    fclose(file);
}

/* SECONDS SEED FILE... */
int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s SECONDS SEED FILE...\n", argv[0]);
        return 2;
    }
    time_t end = time(NULL) + atoi(argv[1]);
    state += strtoull(argv[2], NULL, 10) * 2654435761u;
    seed_count = (size_t)argc - 3;
    seeds = calloc(seed_count, sizeof *seeds);
    if (!seeds) return 2;
    signal(SIGABRT, keep_what_broke);
    signal(SIGALRM, keep_what_broke);
    LLVMFuzzerInitialize(&argc, &argv);
    for (size_t i = 0; i < seed_count; i++) {
        read_seed(argv[i + 3], &seeds[i]);
        run(&seeds[i]);
    }
    unsigned long runs = 0;
    for (; time(NULL) < end; runs++) {
        static input mutant;
        mutant = seeds[chance((uint32_t)seed_count)];
        mutate(&mutant);
        run(&mutant);
    }
    alarm(0);
    printf("%lu mutants of %zu seeds\n", runs, seed_count);
    free(seeds);
    return 0;
}
