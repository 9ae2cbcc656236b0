/* Drives one split virtqueue with prepared requests, many under way at a time, and measures how long they take.
 *
 * The rings were set up by somebody else (bench/virtiofs/device.py), who leaves them idle. Arguments:
 *
 *   ringload MEMFD SIZE DESC AVAIL USED ENTRIES KICK CALL DEPTH COUNT POLL PLAN
 *
 * DESC, AVAIL and USED are offsets in the memory, BASE (from the plan) is the guest address of offset 0; KICK and CALL are
 * inherited eventfds; POLL 1: look at the ring without sleeping. PLAN is a file of lines
 *
 *   base ADDRESS
 *   request REPLY-OFFSET ERRNO TABLE-OFFSET SEGMENTS OFFSET:LENGTH:WRITABLE ...
 *
 * that are used one after the other, over and over, until COUNT requests are done. EVENT_IDX and INDIRECT_DESC must be in
 * force. Prints "REQUESTS NANOSECONDS WRONG KICKS": WRONG counts answers with another errno, or of another length than
 * their header says. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct used { uint32_t id, len; };
struct request { uint64_t table, reply; uint32_t segments; int error; };

static void die(const char *what) { perror(what); exit(1); }

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 13) { fprintf(stderr, "12 arguments\n"); return 2; }
    int memfd = atoi(argv[1]), kick = atoi(argv[7]), call = atoi(argv[8]), polling = atoi(argv[11]);
    uint64_t size = strtoull(argv[2], 0, 0), total = strtoull(argv[10], 0, 0);
    uint16_t entries = atoi(argv[6]), depth = atoi(argv[9]);
    char *mem = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (mem == MAP_FAILED) die("mmap");
    struct desc *ring = (void *)(mem + strtoull(argv[3], 0, 0));
    _Atomic uint16_t *avail = (void *)(mem + strtoull(argv[4], 0, 0));
    _Atomic uint16_t *used = (void *)(mem + strtoull(argv[5], 0, 0));
    struct used *done = (void *)(used + 2);
    if (depth < 1 || depth > entries) { fprintf(stderr, "depth\n"); return 2; }

    uint64_t base = 0;
    size_t count = 0, room = 0;
    struct request *plan = 0;
    FILE *file = fopen(argv[12], "r");
    char *line = 0, *word;
    size_t length = 0;
    if (!file) die(argv[12]);
    while (getline(&line, &length, file) > 0) {
        if (sscanf(line, "base %li", (long *)&base) == 1) continue;
        if (count == room) {
            room = room ? room * 2 : 1024;
            plan = realloc(plan, room * sizeof *plan);
            if (!plan) die("realloc");
        }
        struct request *r = &plan[count++];
        strtok(line, " ");
        r->reply = strtoull(strtok(0, " "), 0, 0);
        r->error = atoi(strtok(0, " "));
        r->table = strtoull(strtok(0, " "), 0, 0);
        r->segments = atoi(strtok(0, " "));
        struct desc *table = (void *)(mem + r->table);
        for (uint32_t i = 0; i < r->segments; i++) {
            unsigned long off, len, writable;
            word = strtok(0, " ");
            if (!word || sscanf(word, "%lu:%lu:%lu", &off, &len, &writable) != 3) { fprintf(stderr, "plan\n"); return 2; }
            table[i].addr = base + off;
            table[i].len = len;
            table[i].flags = (writable ? 2 : 0) | (i + 1 < r->segments ? 1 : 0);
            table[i].next = i + 1 < r->segments ? i + 1 : 0;
        }
    }
    if (!count) { fprintf(stderr, "empty plan\n"); return 2; }

    uint16_t next = atomic_load(&avail[1]), seen = atomic_load(&used[1]), heads[depth], free = depth;
    struct request *under[depth];
    for (int i = 0; i < depth; i++) heads[i] = i;
    uint64_t sent = 0, finished = 0, wrong = 0, kicks = 0, one = 1, begin = now();
    while (finished < total) {
        uint16_t old = next;
        while (free && sent < total) {
            uint16_t head = heads[--free];
            struct request *r = under[head] = &plan[sent++ % count];
            ring[head].addr = base + r->table;
            ring[head].len = r->segments * sizeof(struct desc);
            ring[head].flags = 4;
            atomic_store_explicit(&avail[2 + next % entries], head, memory_order_relaxed);
            next++;
        }
        if (next != old) {
            atomic_store_explicit(&avail[1], next, memory_order_release);
            atomic_thread_fence(memory_order_seq_cst);
            uint16_t event = atomic_load((_Atomic uint16_t *)(done + entries));
            if ((uint16_t)(next - event - 1) < (uint16_t)(next - old)) {
                kicks++;
                if (write(kick, &one, 8) < 0 && errno != EAGAIN) die("kick");
            }
        }
        uint16_t have = atomic_load_explicit(&used[1], memory_order_acquire);
        while (have == seen) {
            if (!polling) {
                atomic_store_explicit(&avail[2 + entries], seen, memory_order_relaxed);
                atomic_thread_fence(memory_order_seq_cst);
                have = atomic_load_explicit(&used[1], memory_order_acquire);
                if (have != seen) break;
                struct pollfd wait = {call, POLLIN, 0};
                uint64_t number;
                int ready = poll(&wait, 1, 20000);
                if (ready == 0) { fprintf(stderr, "no answer: %lu of %lu done\n", finished, total); return 1; }
                if (ready > 0 && read(call, &number, 8) < 0 && errno != EAGAIN) die("call");
            }
            have = atomic_load_explicit(&used[1], memory_order_acquire);
        }
        while (have != seen) {
            struct used u = done[seen++ % entries];
            if (u.id >= depth) { fprintf(stderr, "used id %u\n", u.id); return 1; }
            struct request *r = under[u.id];
            heads[free++] = u.id;
            finished++;
            if (r->reply) {
                uint32_t *header = (void *)(mem + r->reply);
                if (header[0] != u.len || (int)header[1] != -r->error) wrong++;
            }
        }
    }
    printf("%lu %lu %lu %lu\n", finished, now() - begin, wrong, kicks);
    return 0;
}
