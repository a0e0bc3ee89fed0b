/* The load generator of `peers.py`: many Yjs clients over loopback, in one thread.
 *
 * It opens clients in rooms, does the WebSocket handshake and the Yjs sync with each, and has some of
 * them write: at a fixed rate in all, or as fast as the server goes, where each writer keeps some
 * updates in flight and sends the next when everybody else in its room has got one of them. It takes
 * every received update apart, and so knows that each receiver got each update of each author,
 * whether the server merged updates or put several into one frame. At the end it prints one JSON
 * object: see `report`.
 *
 * What is measured is a window after a warm-up. Deliveries are updates that came to somebody else
 * than their author, within the window; CPU seconds are the server's over the same window, of all
 * its threads, by the clock the kernel keeps for each process (/proc/PID/stat says the same in steps
 * of 10 ms, too coarse for a calm server). An echo to the author is no delivery.
 *
 * Build: cc -O2 -Wall -Wextra -o load load.c
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef uint8_t byte;
typedef uint64_t ns; /* nanoseconds */

static const ns SECOND = 1000000000;

enum { READ_BYTES = 256 * 1024, MAX_PIDS = 16, MAX_SAMPLES = 4096, OPENING = 50 };
enum { FIRST_AUTHOR = 0xB2D05E00 }; /* 3,000,000,000: ids of real clients are 32 bits long */

/* ---- options */

static struct {
    int port;
    const char *room;    /* rooms are called room-0, room-1, ... */
    bool hocuspocus;     /* its dialect, instead of y-websocket's */
    bool awareness;      /* writers send awareness states instead of updates */
    int rooms, clients;  /* clients in each room */
    int writers;         /* so many of them */
    int stuck;           /* so many further ones in each room stop reading once they are synced */
    double rate;         /* updates a second in all; 0: as fast as it goes */
    int in_flight;       /* of each writer, then */
    int size;            /* characters an update inserts */
    double warm_up, seconds, drain; /* seconds; drain: how long to wait for what is missing */
    const char *document; /* a file with an update that is in the first room from the beginning */
    int joiners;         /* come to the first room in the window, in place of `seconds` */
    int at_once;         /* so many of them at the same time */
    int pids[MAX_PIDS], n_pids; /* the server's processes */
    int core;            /* to run on; -1: any */
} opt = {.room = "room", .rooms = 1, .clients = 2, .writers = -1, .in_flight = 4, .size = 1,
         .warm_up = 1, .seconds = 3, .drain = 20, .at_once = 1, .core = -1};

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *checked(void *memory) {
    if (memory == NULL) fail("out of memory");
    return memory;
}

static ns now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (ns)t.tv_sec * SECOND + t.tv_nsec;
}

/* ---- bytes */

typedef struct {
    byte *data;
    size_t size, capacity;
} Buffer;

static void put(Buffer *b, const void *data, size_t size) {
    if (b->size + size > b->capacity) {
        b->capacity = 2 * (b->size + size);
        b->data = checked(realloc(b->data, b->capacity));
    }
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void put_byte(Buffer *b, byte value) { put(b, &value, 1); }

static void put_uint(Buffer *b, uint64_t value) { /* lib0's varUint */
    while (value > 127) {
        put_byte(b, 0x80 | (value & 0x7F));
        value >>= 7;
    }
    put_byte(b, value);
}

static void put_bytes(Buffer *b, const void *data, size_t size) { /* its varUint8Array */
    put_uint(b, size);
    put(b, data, size);
}

static void drop(Buffer *b, size_t size) { /* the first bytes */
    b->size -= size;
    memmove(b->data, b->data + size, b->size);
}

typedef struct {
    const byte *at, *end;
} Reader;

static uint64_t get_uint(Reader *r) {
    uint64_t value = 0;
    for (int shift = 0; r->at < r->end && shift < 64; shift += 7) {
        byte b = *r->at++;
        value |= (uint64_t)(b & 0x7F) << shift;
        if (b < 0x80) return value;
    }
    fail("the server sent a message that is cut short");
    return 0;
}

static Reader get_bytes(Reader *r) {
    uint64_t size = get_uint(r);
    if (size > (uint64_t)(r->end - r->at)) fail("the server sent a message that is cut short");
    Reader part = {r->at, r->at + size};
    r->at += size;
    return part;
}

/* ---- latencies: counts in buckets 3 % wide */

enum { SUB = 32, BUCKETS = 64 * SUB };

typedef struct {
    uint64_t counts[BUCKETS], total;
    ns most;
} Latencies;

static void note(Latencies *l, ns value) {
    int bucket = value;
    if (value >= SUB) {
        int exponent = 63 - __builtin_clzll(value);
        bucket = (exponent - 4) * SUB + ((value >> (exponent - 5)) & (SUB - 1));
    }
    l->counts[bucket]++;
    l->total++;
    if (value > l->most) l->most = value;
}

static double quantile(const Latencies *l, double q) { /* milliseconds */
    uint64_t rank = q * l->total, seen = 0;
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        seen += l->counts[bucket];
        if (seen > rank) {
            if (bucket < SUB) return bucket / 1e6;
            return (double)((uint64_t)(SUB + bucket % SUB) << (bucket / SUB - 1)) / 1e6;
        }
    }
    return l->most / 1e6;
}

/* ---- who there is */

typedef struct Client Client;

typedef struct {      /* one who writes, and what has become of its updates */
    Client *client;
    uint32_t sent;    /* how many updates */
    uint32_t done;    /* so many of them have come to everyone */
    uint64_t clock;   /* of its awareness */
    ns *sent_at;      /* of each */
    uint16_t *got;    /* how many receivers each has come to */
    size_t capacity;
} Author;

typedef enum { SHAKING, SYNCING, READY, LEAVING, CLOSED } State;
typedef enum { MEMBER, STUCK, JOINER } Kind;

struct Client {
    int fd, room;
    Kind kind;
    State state;
    bool wants_out;     /* whether epoll says when it may be written to */
    Author *author;     /* if it writes */
    uint32_t *has;      /* of each author of its room: how many updates */
    Buffer in, out, message; /* unread bytes; bytes to send; what came of a fragmented message */
    uint64_t skip, skipped; /* bytes of a long message that are not kept */
    ns opened;
};

static Client *members; /* room by room, those who are stuck last */
static Client *joiners;
static Author *authors;
static int n_members, n_authors, n_ready, n_opened, n_joined, per_room;

static int poll_fd, timer_fd;
static bool sending;   /* whether writers go on */
static ns window_from, window_to = UINT64_MAX;
static size_t document_size;

static uint64_t deliveries, superseded, duplicates, gaps, frames, reads;
static Latencies latencies, joins;
static ns latest;      /* by how much a send was later than it should have been */

static void send_update(Author *author);

/* ---- the server's processes */

static double server_cpu(void) { /* seconds */
    double total = 0;
    for (int i = 0; i < opt.n_pids; i++) {
        clockid_t clock;
        struct timespec t;
        if (clock_getcpuclockid(opt.pids[i], &clock) || clock_gettime(clock, &t))
            fail("the server is gone");
        total += t.tv_sec + t.tv_nsec / 1e9;
    }
    return total;
}

static uint64_t server_memory(void) { /* bytes that are resident */
    uint64_t pages = 0;
    for (int i = 0; i < opt.n_pids; i++) {
        char path[64];
        unsigned long resident;
        snprintf(path, sizeof path, "/proc/%d/statm", opt.pids[i]);
        FILE *file = fopen(path, "r");
        if (file == NULL) fail("the server is gone");
        if (fscanf(file, "%*u %lu", &resident) == 1) pages += resident;
        fclose(file);
    }
    return pages * sysconf(_SC_PAGESIZE);
}

static double waited(int pid) { /* seconds its threads were ready to run, and others ran */
    char path[300];
    double total = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (tasks == NULL) return 0;
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        unsigned long long wait;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, task->d_name);
        FILE *file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file == NULL) continue;
        if (fscanf(file, "%*u %llu", &wait) == 1) total += wait / 1e9;
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static double server_waited(void) {
    double total = 0;
    for (int i = 0; i < opt.n_pids; i++) total += waited(opt.pids[i]);
    return total;
}

static double own_cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* ---- sending */

static void want(Client *c, bool out) {
    if (c->wants_out == out) return;
    c->wants_out = out;
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void write_out(Client *c) {
    while (c->out.size) {
        ssize_t written = send(c->fd, c->out.data, c->out.size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (written < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (written < 0) fail("can't send to the server: %s", strerror(errno));
        drop(&c->out, written);
    }
    want(c, c->out.size > 0);
}

static void send_frame(Client *c, int opcode, const byte *payload, size_t size) {
    static const byte mask[4] = {0x37, 0xFA, 0x21, 0x3D}; /* the example of RFC 6455 */
    bool first = c->out.size == 0;
    put_byte(&c->out, 0x80 | opcode);
    if (size < 126) {
        put_byte(&c->out, 0x80 | size);
    } else {
        int width = size < 65536 ? 2 : 8;
        put_byte(&c->out, 0x80 | (width == 2 ? 126 : 127));
        while (width--) put_byte(&c->out, (uint64_t)size >> (8 * width));
    }
    put(&c->out, mask, 4);
    size_t at = c->out.size;
    put(&c->out, payload, size);
    for (size_t i = 0; i < size; i++) c->out.data[at + i] ^= mask[i % 4];
    if (first) write_out(c); /* each message leaves at once, as a browser's does */
}

static int room_name(const Client *c, char *name, size_t size) {
    return snprintf(name, size, "%s-%d", opt.room, c->room);
}

/* Send a message of a type; `body` is what follows the type. */
static void send_message(Client *c, int type, const void *body, size_t size) {
    static Buffer message;
    message.size = 0;
    if (opt.hocuspocus) {
        char name[200];
        put_bytes(&message, name, room_name(c, name, sizeof name));
    }
    put_uint(&message, type);
    put(&message, body, size);
    send_frame(c, 2, message.data, message.size);
}

static void send_update(Author *author) {
    static Buffer update, message;
    uint64_t id = FIRST_AUTHOR + (author - authors);
    uint64_t number = author->sent++;
    if (author->sent > author->capacity) {
        author->capacity = 2 * author->sent + 1000;
        author->sent_at = checked(realloc(author->sent_at, author->capacity * sizeof *author->sent_at));
        author->got = checked(realloc(author->got, author->capacity * sizeof *author->got));
    }
    author->got[number] = 0;
    update.size = message.size = 0;
    if (opt.awareness) {
        char json[200];
        int size = snprintf(json, sizeof json,
                            "{\"user\":{\"name\":\"client %d\",\"color\":\"#30bced\"},\"cursor\":"
                            "{\"anchor\":%u,\"head\":%u}}",
                            (int)(author - authors), (unsigned)number, (unsigned)number);
        put_uint(&update, 1);
        put_uint(&update, id);
        put_uint(&update, ++author->clock);
        put_bytes(&update, json, size);
    } else { /* some letters behind the author's last one: see `ycore/updates/_grammar.py` */
        uint64_t clock = number * opt.size;
        put(&update, "\1\1", 2);
        put_uint(&update, id);
        put_uint(&update, clock);
        if (number) {
            put_byte(&update, 0x84);
            put_uint(&update, id);
            put_uint(&update, clock - 1);
        } else {
            put(&update, "\4\1\4text", 7);
        }
        put_uint(&update, opt.size);
        for (int i = 0; i < opt.size; i++) put_byte(&update, 'a' + number % 26);
        put_byte(&update, 0);
        put_byte(&message, 2); /* y-protocols: messageYjsUpdate */
    }
    put_bytes(&message, update.data, update.size);
    author->sent_at[number] = now();
    send_message(author->client, opt.awareness ? 1 : 0, message.data, message.size);
}

/* ---- receiving */

/* An author's updates up to number `end` have come, from `start` on just now. */
static void delivered(Client *c, uint64_t id, uint64_t start, uint64_t end, ns at) {
    uint64_t index = id - FIRST_AUTHOR;
    if (id < FIRST_AUTHOR || index >= (uint64_t)n_authors) return; /* in the document before */
    Author *author = &authors[index];
    if (author->client == c) return;
    if (author->client->room != c->room) fail("an update came to another room than its own");
    uint32_t *has = &c->has[index % opt.writers];
    if (end > author->sent) fail("an update came that was not sent");
    if (end <= *has) {
        duplicates += end - start;
        return;
    }
    if (start > *has) {
        if (!opt.awareness) {
            gaps++;
            return; /* it stays lost, and what comes behind it */
        }
        superseded += start - *has; /* only the latest state counts */
    }
    for (uint32_t number = *has; number < end; number++) {
        author->got[number]++;
        if (number < start) continue;
        deliveries++;
        ns sent_at = author->sent_at[number];
        if (sent_at >= window_from && sent_at < window_to) note(&latencies, at - sent_at);
    }
    *has = end;
    int receivers = opt.clients - 1;
    while (author->done < author->sent && author->got[author->done] == receivers) author->done++;
    if (sending && opt.rate == 0)
        while (author->sent - author->done < (uint32_t)opt.in_flight) send_update(author);
}

static void receive_update(Client *c, Reader r, ns at) {
    for (uint64_t sections = get_uint(&r); sections; sections--) {
        uint64_t structs = get_uint(&r), client = get_uint(&r), clock = get_uint(&r);
        uint64_t start = clock;
        while (structs--) {
            if (r.at == r.end) fail("the server sent an update that is cut short");
            byte info = *r.at++;
            uint64_t length;
            if (info == 0) {
                length = get_uint(&r); /* GC */
            } else if (info == 10) { /* Skip: what is behind it is announced apart */
                if (clock > start) delivered(c, client, start / opt.size, clock / opt.size, at);
                clock = start = clock + get_uint(&r);
                continue;
            } else {
                if (info & 0x80) get_uint(&r), get_uint(&r); /* origin */
                if (info & 0x40) get_uint(&r), get_uint(&r); /* right origin */
                if (!(info & 0xC0)) { /* parent */
                    if (get_uint(&r)) get_bytes(&r);
                    else get_uint(&r), get_uint(&r);
                    if (info & 0x20) get_bytes(&r);
                }
                if ((info & 31) == 4) {
                    Reader string = get_bytes(&r);
                    length = string.end - string.at; /* all of it is ASCII */
                } else if ((info & 31) == 1) {
                    length = get_uint(&r); /* deleted */
                } else {
                    fail("the server sent content of kind %d, which nobody wrote", info & 31);
                }
            }
            clock += length;
        }
        if (clock > start) delivered(c, client, start / opt.size, clock / opt.size, at);
    }
}

static void receive_awareness(Client *c, Reader r, ns at) {
    for (uint64_t entries = get_uint(&r); entries; entries--) {
        uint64_t client = get_uint(&r), clock = get_uint(&r);
        Reader json = get_bytes(&r);
        if (!opt.awareness) continue;
        /* A server may count somebody's clock up, and tell it so: it goes on from there. Which state
         * it is, the state itself says. */
        if (c->author && client == FIRST_AUTHOR + (uint64_t)(c->author - authors) &&
            clock > c->author->clock)
            c->author->clock = clock;
        static const char before[] = "\"anchor\":";
        byte *anchor = memmem(json.at, json.end - json.at, before, sizeof before - 1);
        if (anchor == NULL) continue; /* null: it is gone */
        uint64_t number = strtoull((char *)anchor + sizeof before - 1, NULL, 10);
        delivered(c, client, number, number + 1, at);
    }
}

static void synced(Client *c) {
    if (c->state != SYNCING) return;
    c->state = READY;
    n_ready++;
    if (c->kind == STUCK) epoll_ctl(poll_fd, EPOLL_CTL_DEL, c->fd, NULL);
}

static void receive_message(Client *c, Reader r, ns at) {
    if (opt.hocuspocus) {
        if (r.end - r.at == 1) {
            if (*r.at == 9) send_frame(c, 2, (const byte *)"\x0a", 1); /* its own ping */
            return;
        }
        get_bytes(&r); /* the document's name */
    }
    while (r.at < r.end) {
        uint64_t type = get_uint(&r);
        if (type == 0) {
            uint64_t step = get_uint(&r);
            Reader payload = get_bytes(&r);
            if (step == 0) {
                send_message(c, 0, "\1\2\0", 4); /* SyncStep2: an empty update */
            } else {
                if (c->kind == MEMBER) receive_update(c, payload, at);
                /* Who brings the document asks a second time, to know that it was taken in. */
                size_t size = payload.end - payload.at;
                bool brings = document_size && c == members;
                if (step == 1 && (!brings || size >= document_size * 9 / 10)) synced(c);
            }
        } else if (type == 1) {
            receive_awareness(c, get_bytes(&r), at);
        } else if (type == 2 && !opt.hocuspocus) {
            fail("the server denies permission");
        } else if (type == 7 && opt.hocuspocus) {
            fail("the server closes the document");
        } else {
            return; /* nothing here depends on it */
        }
    }
}

static void close_client(Client *c) {
    close(c->fd);
    free(c->in.data), free(c->out.data), free(c->message.data);
    memset(&c->in, 0, sizeof c->in), memset(&c->out, 0, sizeof c->out);
    memset(&c->message, 0, sizeof c->message);
    c->state = CLOSED;
}

/* A joiner has got the whole document: its message's size tells. It goes again, in good order. */
static void has_joined(Client *c, uint64_t size) {
    if (size < document_size * 9 / 10 || c->state == LEAVING) return;
    note(&joins, now() - c->opened);
    n_joined++;
    c->state = LEAVING;
    send_frame(c, 8, (const byte *)"\x03\xe8", 2); /* 1000: it is done */
}

static void start_sync(Client *c);

/* Take in what begins `in`; return how many bytes that was, 0 if it is not all there. */
static size_t receive_frame(Client *c, byte *in, size_t size, ns at) {
    if (size < 2) return 0;
    size_t head = 2;
    uint64_t length = in[1] & 0x7F;
    if (length >= 126) {
        int width = length == 126 ? 2 : 8;
        if (size < head + width) return 0;
        length = 0;
        while (width--) length = length << 8 | in[head++];
    }
    if (in[1] & 0x80 || in[0] & 0x70) fail("the server sent a frame that is masked or compressed");
    if (c->kind == JOINER && length >= READ_BYTES && in[0] == 0x82) {
        c->skip = c->skipped = length;
        return head;
    }
    if (size < head + length) return 0;
    byte *payload = in + head;
    switch (in[0] & 15) {
    case 0:
    case 2:
        frames++;
        if (in[0] == 0x82) {
            receive_message(c, (Reader){payload, payload + length}, at);
        } else {
            put(&c->message, payload, length);
            if (in[0] & 0x80) {
                Buffer message = c->message;
                receive_message(c, (Reader){message.data, message.data + message.size}, at);
                c->message.size = 0;
            }
        }
        break;
    case 8:
        if (c->state == LEAVING) {
            close_client(c);
            break;
        }
        fail("the server closed a connection: code %d, %.*s",
             length >= 2 ? payload[0] << 8 | payload[1] : 0, length > 2 ? (int)length - 2 : 0,
             payload + 2);
        break;
    case 9:
        send_frame(c, 10, payload, length);
        break;
    case 10:
        break;
    default:
        fail("the server sent a frame of kind %d", in[0] & 15);
    }
    return head + length;
}

static size_t receive_handshake(Client *c, byte *in, size_t size) {
    byte *end = memmem(in, size, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    if (size < 12 || memcmp(in, "HTTP/1.1 101", 12) != 0)
        fail("the server did not accept: %.*s", (int)(strcspn((char *)in, "\r")), in);
    c->state = SYNCING;
    start_sync(c);
    return end + 4 - in;
}

static void receive_bytes(Client *c, byte *data, size_t size, ns at) {
    size_t used;
    bool kept = c->in.size > 0;
    if (kept) {
        put(&c->in, data, size);
        data = c->in.data;
        size = c->in.size;
    }
    do {
        if (c->skip) {
            used = size < c->skip ? size : c->skip;
            c->skip -= used;
            if (!c->skip && used) has_joined(c, c->skipped);
        } else if (c->state == SHAKING) {
            used = receive_handshake(c, data, size);
        } else {
            used = receive_frame(c, data, size, at);
        }
        if (c->state == CLOSED) return;
        data += used;
        size -= used;
    } while (used && size);
    if (kept) drop(&c->in, c->in.size - size);
    else if (size) put(&c->in, data, size);
}

static void read_from(Client *c) {
    static byte bytes[READ_BYTES];
    ssize_t size = recv(c->fd, bytes, sizeof bytes - 1, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (size <= 0 && c->state == LEAVING) {
        close_client(c);
        return;
    }
    if (size < 0) fail("can't read from the server: %s", strerror(errno));
    if (size == 0) fail("the server hung up");
    bytes[size] = 0;
    reads++;
    receive_bytes(c, bytes, size, now());
}

/* ---- clients */

static void open_client(Client *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(opt.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->opened = now();
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) fail("no socket: %s", strerror(errno));
    if (c->kind == STUCK) /* so that what it does not read soon waits at the server */
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("can't connect: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
    char name[200], request[500];
    room_name(c, name, sizeof name);
    int size = snprintf(request, sizeof request,
                        "GET /%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                        "Sec-WebSocket-Version: 13\r\n\r\n",
                        opt.hocuspocus ? "" : name, opt.port);
    put(&c->out, request, size);
    write_out(c);
}

static void start_sync(Client *c) {
    static Buffer update;
    if (opt.hocuspocus) send_message(c, 2, "\0\1T\0054.0.0", 9); /* Auth: a token, a version */
    if (document_size && c == members) { /* it brings the document */
        byte *document = checked(malloc(document_size));
        FILE *file = fopen(opt.document, "rb");
        if (file == NULL || fread(document, 1, document_size, file) != document_size)
            fail("can't read %s", opt.document);
        fclose(file);
        put_byte(&update, 2);
        put_bytes(&update, document, document_size);
        free(document);
        send_message(c, 0, update.data, update.size);
    }
    send_message(c, 0, "\0\1\0", 3); /* SyncStep1: I have nothing */
}

/* Work off what epoll has to say, for up to so many milliseconds. */
static void turn(int timeout) {
    static struct epoll_event events[512];
    int count = epoll_wait(poll_fd, events, 512, timeout);
    for (int i = 0; i < count; i++) {
        Client *c = events[i].data.ptr;
        if (c == NULL) continue; /* the timer */
        if (events[i].events & EPOLLOUT) write_out(c);
        if (events[i].events & ~EPOLLOUT && c->state != CLOSED) read_from(c);
    }
}

static void await_ready(int count, ns deadline) {
    while (n_ready < count) {
        turn(100);
        if (now() > deadline) fail("only %d of %d clients were let in", n_ready, n_members);
    }
}

/* The first client of each room comes before the others: it brings the document, if there is one;
 * and who comes to pycrdt-websocket 0.16 while it opens the room is never answered. */
static void open_members(void) {
    ns deadline = now() + 60 * SECOND;
    for (int others = 0; others < 2; others++) {
        for (int i = 0; i < n_members; i++) {
            if ((i % per_room > 0) != others) continue;
            await_ready(n_opened - OPENING, deadline);
            open_client(&members[i]);
            n_opened++;
        }
        await_ready(n_opened, deadline);
    }
}

/* ---- the run */

static struct {
    double cpu, waited, own, own_waited;
    uint64_t deliveries, sent, frames, reads;
    ns at;
} start, stop;

static uint64_t memory_before, memory_open, samples[MAX_SAMPLES];
static int n_samples;
static ns next_sample;

#define SNAPSHOT(s)                                                                                \
    do {                                                                                           \
        (s).at = now(), (s).cpu = server_cpu(), (s).own = own_cpu();                               \
        (s).waited = server_waited(), (s).own_waited = waited(getpid());                           \
        (s).deliveries = deliveries, (s).frames = frames, (s).reads = reads;                       \
        (s).sent = 0;                                                                              \
        for (int i = 0; i < n_authors; i++) (s).sent += authors[i].sent;                           \
    } while (0)

/* Run until a time, or, with joiners, until all have come. */
static void run(ns until, bool joining) {
    static uint64_t tick;
    static ns due;
    int joiner = 0;
    while (joining ? n_joined < opt.joiners : now() < until) {
        while (joining && joiner < opt.joiners && joiner - n_joined < opt.at_once)
            open_client(&joiners[joiner++]);
        if (sending && opt.rate > 0 && n_authors) {
            ns at = now();
            if (!due) due = at;
            while (due <= at) {
                if (at - due > latest) latest = at - due;
                /* Writers take turns, and so do rooms. */
                int room = tick % opt.rooms, writer = tick / opt.rooms % opt.writers;
                send_update(&authors[room * opt.writers + writer]);
                due += SECOND / opt.rate;
                tick++;
            }
            struct itimerspec alarm = {.it_value = {due / SECOND, due % SECOND}};
            timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &alarm, NULL);
        }
        turn(20);
        if (now() >= next_sample && n_samples < MAX_SAMPLES) {
            samples[n_samples++] = server_memory();
            next_sample = now() + SECOND / 2;
        }
        if (joining && now() > until) fail("only %d of %d joiners came in", n_joined, opt.joiners);
    }
}

static uint64_t missing(void) { /* updates that are to come to somebody */
    uint64_t count = 0;
    for (int i = 0; i < n_members; i++) {
        if (members[i].kind == STUCK) continue;
        for (int w = 0; w < opt.writers; w++) {
            Author *author = &authors[members[i].room * opt.writers + w];
            if (author->client != &members[i]) count += author->sent - members[i].has[w];
        }
    }
    return count;
}

static void report(double drained) {
    double seconds = (stop.at - start.at) / 1e9, cpu = stop.cpu - start.cpu;
    uint64_t count = stop.deliveries - start.deliveries;
    printf("{\"seconds\": %.3f, \"connections\": %d, ", seconds, n_members);
    printf("\"sent\": %lu, \"deliveries\": %lu, ", stop.sent - start.sent, count);
    printf("\"deliveries_per_cpu_second\": %.1f, ", cpu > 0 ? count / cpu : 0);
    printf("\"lost\": %lu, \"gaps\": %lu, \"duplicates\": %lu, \"superseded\": %lu, ", missing(),
           gaps, duplicates, superseded);
    printf("\"drained_in\": %.3f, ", drained);
    if (latencies.total)
        printf("\"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f, ", quantile(&latencies, 0.5),
               quantile(&latencies, 0.99), latencies.most / 1e6);
    printf("\"frames\": %lu, \"reads\": %lu, ", stop.frames - start.frames,
           stop.reads - start.reads);
    if (n_joined)
        printf("\"joins\": %d, \"join_p50_ms\": %.3f, \"join_max_ms\": %.3f, ", n_joined,
               quantile(&joins, 0.5), joins.most / 1e6);
    printf("\"server_cpu\": %.3f, \"server_waited\": %.3f, ", cpu, stop.waited - start.waited);
    printf("\"generator_cpu\": %.3f, \"generator_waited\": %.3f, ", stop.own - start.own,
           stop.own_waited - start.own_waited);
    printf("\"generator_busy\": %.3f, \"latest_send_ms\": %.3f, ", (stop.own - start.own) / seconds,
           latest / 1e6);
    printf("\"memory_before\": %lu, \"memory_open\": %lu, \"memory\": [", memory_before,
           memory_open);
    for (int i = 0; i < n_samples; i++) printf("%s%lu", i ? ", " : "", samples[i]);
    printf("]}\n");
}

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},      {"room", 1, 0, 'r'},     {"hocuspocus", 0, 0, 'h'},
        {"awareness", 0, 0, 'a'}, {"rooms", 1, 0, 'R'},    {"clients", 1, 0, 'C'},
        {"writers", 1, 0, 'W'},   {"stuck", 1, 0, 'T'},    {"rate", 1, 0, 'u'},
        {"in-flight", 1, 0, 'k'}, {"size", 1, 0, 's'},     {"warm-up", 1, 0, 'w'},
        {"seconds", 1, 0, 'S'},   {"drain", 1, 0, 'D'},    {"document", 1, 0, 'd'},
        {"joiners", 1, 0, 'j'},   {"at-once", 1, 0, 'o'},  {"pid", 1, 0, 'P'},
        {"core", 1, 0, 'c'},      {0, 0, 0, 0}};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'p': opt.port = atoi(optarg); break;
        case 'r': opt.room = optarg; break;
        case 'h': opt.hocuspocus = true; break;
        case 'a': opt.awareness = true; break;
        case 'R': opt.rooms = atoi(optarg); break;
        case 'C': opt.clients = atoi(optarg); break;
        case 'W': opt.writers = atoi(optarg); break;
        case 'T': opt.stuck = atoi(optarg); break;
        case 'u': opt.rate = atof(optarg); break;
        case 'k': opt.in_flight = atoi(optarg); break;
        case 's': opt.size = atoi(optarg); break;
        case 'w': opt.warm_up = atof(optarg); break;
        case 'S': opt.seconds = atof(optarg); break;
        case 'D': opt.drain = atof(optarg); break;
        case 'd': opt.document = optarg; break;
        case 'j': opt.joiners = atoi(optarg); break;
        case 'o': opt.at_once = atoi(optarg); break;
        case 'P':
            if (opt.n_pids == MAX_PIDS) fail("too many processes");
            opt.pids[opt.n_pids++] = atoi(optarg);
            break;
        case 'c': opt.core = atoi(optarg); break;
        default: exit(2);
        }
    }
    if (opt.writers < 0) opt.writers = opt.clients;
    if (!opt.port || opt.writers > opt.clients) fail("a port is needed, and writers are clients");
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    if (opt.core >= 0) {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        CPU_SET(opt.core, &cores);
        if (sched_setaffinity(0, sizeof cores, &cores) < 0) fail("no core %d", opt.core);
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    per_room = opt.clients + opt.stuck;
    n_members = opt.rooms * per_room;
    n_authors = opt.rooms * opt.writers;
    members = checked(calloc(n_members, sizeof *members));
    authors = checked(calloc(n_authors + 1, sizeof *authors));
    joiners = checked(calloc(opt.joiners + 1, sizeof *joiners));
    for (int i = 0; i < n_members; i++) {
        Client *c = &members[i];
        c->room = i / per_room;
        c->kind = i % per_room < opt.clients ? MEMBER : STUCK;
        c->has = checked(calloc(opt.writers + 1, sizeof *c->has));
        if (i % per_room < opt.writers) {
            c->author = &authors[c->room * opt.writers + i % per_room];
            c->author->client = c;
        }
    }
    for (int i = 0; i < opt.joiners; i++) joiners[i].kind = JOINER;
    if (opt.document) {
        FILE *file = fopen(opt.document, "rb");
        if (file == NULL || fseek(file, 0, SEEK_END)) fail("can't read %s", opt.document);
        document_size = ftell(file);
        fclose(file);
    }
    poll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event);

    memory_before = server_memory();
    open_members();
    run(now() + SECOND / 2, false); /* sync messages that are still under way */
    memory_open = server_memory();
    sending = true;
    if (opt.rate == 0)
        for (int i = 0; i < n_authors; i++)
            for (int k = 0; k < opt.in_flight; k++) send_update(&authors[i]);
    run(now() + opt.warm_up * SECOND, false);
    window_from = now();
    latest = 0;
    SNAPSHOT(start);
    run(now() + (opt.joiners ? 120 : opt.seconds) * SECOND, opt.joiners > 0);
    SNAPSHOT(stop);
    window_to = now();
    sending = false;
    struct itimerspec never = {0};
    timerfd_settime(timer_fd, 0, &never, NULL);
    ns deadline = window_to + opt.drain * SECOND;
    while (missing() && now() < deadline) turn(20);
    report((now() - window_to) / 1e9);
    return 0;
}
