/* Thousands of clients in one thread, cheap enough not to distort the measurement.
 *
 *   receiver --port P --connections N [--raw] [--path /ws] [--send TEXT | --send-hex BYTES] [--replies R] [--sample K]
 *            [--sources S] [--window W] [--protocol NAME] [--nap-us U]
 *
 * Opens N connections, WebSocket handshake included (--raw: none), and sends --send on each as one masked text
 * frame; "%d" in it becomes the connection's number. --send-hex: a binary frame. The first R data frames (1) are what
 * the server replies until the client is subscribed. Then it drains with big recv()s. Frames are walked by their
 * headers, not parsed; of every K-th connection the payload is searched for "t":NANOSECONDS (CLOCK_MONOTONIC),
 * whose age at receipt is the latency, and which must not decrease. Pings are answered; data frames of at most 2 bytes,
 * which are Centrifuge's pings, are skipped. --nap-us: once all are open, it polls every U microseconds instead of
 * waiting to be woken: waking costs the sender's CPU.
 *
 * stdout: {"event": "ready", ...} when every connection is open and, with --send, has got its replies; then one line
 * for each command of stdin:
 *   mark                       count from zero again
 *   wait MESSAGES TIMEOUT_MS   answers with the counts when that many messages have come, or at the timeout
 *   flood MESSAGES WINDOW JSON sends JSON as fast as answers come, WINDOW unanswered on each connection; answers
 *                              when MESSAGES replies have come
 * Ends when stdin ends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum state { CONNECTING, SHAKING, REPLYING, OPEN, CLOSED };

struct connection {
    int fd;
    enum state state;
    unsigned char head_bytes;  /* of an unfinished header, kept in head */
    unsigned char opcode;      /* of the frame whose payload is being skipped */
    bool is_short;             /* that frame has at most 2 bytes */
    int replies;               /* data frames before it is open */
    unsigned char head[14];
    uint64_t skip;             /* payload bytes still to come */
    uint64_t last_ns;          /* the latest "t" of a sampled connection */
};

static struct connection *connections;
static int n_connections = 1, port, epoll_fd, window = 128, n_sources = 1, sample_every;
static int n_started, n_ready, n_pending, nap_us;
static bool raw;
static const char *path = "/ws", *first_message, *protocol;
static unsigned char first_binary[1024];
static size_t n_first_binary;
static int n_replies = 1;
static uint64_t n_messages, n_bytes, n_closed, n_out_of_order, n_recvs;
static uint64_t flood_left;
static unsigned char flood_frame[4096];
static size_t flood_bytes;
static uint32_t *latencies_us;
static size_t n_latencies, latencies_room;
static unsigned char buffer[1 << 18];

static void die(const char *what) { perror(what); exit(1); }

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A masked frame with the mask 0 0 0 0: legal, and the payload stays readable. Returns its length. */
static size_t masked_frame(unsigned char *out, unsigned char opcode, const void *payload, size_t length) {
    size_t at = 0;
    out[at++] = 0x80 | opcode;
    if (length < 126) out[at++] = 0x80 | (unsigned char)length;
    else { out[at++] = 0x80 | 126; out[at++] = (unsigned char)(length >> 8); out[at++] = (unsigned char)length; }
    memset(out + at, 0, 4);
    at += 4;
    memcpy(out + at, payload, length);
    return at + length;
}

static void send_all(struct connection *c, const void *bytes, size_t length) {
    if (send(c->fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length && errno != EPIPE && errno != ECONNRESET)
        die("send"); /* small frames into an empty buffer: anything else is a fault of the benchmark */
}

static void close_connection(struct connection *c) {
    if (c->state == CLOSED) return;
    if (c->state != OPEN) n_pending--;
    c->state = CLOSED;
    close(c->fd);
    n_closed++;
}

static void start_connection(void) {
    struct connection *c = &connections[n_started];
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (n_sources > 1) { /* the port is chosen at connect: each source address has its own 28,000 */
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        struct sockaddr_in source = {.sin_family = AF_INET};
        source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(n_started % n_sources));
        if (bind(c->fd, (struct sockaddr *)&source, sizeof source)) die("bind");
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    n_started++;
    n_pending++;
}

static void become_open(struct connection *c) {
    c->state = OPEN;
    n_pending--;
    n_ready++;
}

static void connected(struct connection *c) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    if (raw) { become_open(c); return; }
    char request[1024];
    int length = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
        path, port, protocol ? "Sec-WebSocket-Protocol: " : "", protocol ? protocol : "", protocol ? "\r\n" : "");
    c->state = SHAKING;
    send_all(c, request, (size_t)length);
}

static void shaken(struct connection *c) {
    unsigned char frame[4096];
    if (n_first_binary) {
        c->state = REPLYING;
        send_all(c, frame, masked_frame(frame, 2, first_binary, n_first_binary));
        return;
    }
    if (!first_message) { become_open(c); return; }
    char message[2048];
    const char *hole = strstr(first_message, "%d");
    int length = hole ? snprintf(message, sizeof message, "%.*s%d%s", (int)(hole - first_message), first_message,
                                 (int)(c - connections), hole + 2)
                      : snprintf(message, sizeof message, "%s", first_message);
    c->state = REPLYING;
    send_all(c, frame, masked_frame(frame, 1, message, (size_t)length));
}

static void take_sample(struct connection *c, const unsigned char *payload, uint64_t length, uint64_t now) {
    const unsigned char *at = memmem(payload, length, "\"t\":", 4);
    if (!at) return;
    uint64_t sent = strtoull((const char *)at + 4, NULL, 10);
    if (sent < c->last_ns) n_out_of_order++;
    c->last_ns = sent;
    if (n_latencies == latencies_room) {
        latencies_room = latencies_room ? latencies_room * 2 : 1 << 16;
        latencies_us = realloc(latencies_us, latencies_room * sizeof *latencies_us);
        if (!latencies_us) die("realloc");
    }
    latencies_us[n_latencies++] = (uint32_t)((now - sent) / 1000);
}

static void count_message(struct connection *c) {
    if (c->opcode == 8) { close_connection(c); return; }
    if (c->opcode > 2 || c->is_short) return;
    if (c->state == REPLYING) {
        if (++c->replies == n_replies) become_open(c);
        return;
    }
    n_messages++;
    if (flood_left) { flood_left--; send_all(c, flood_frame, flood_bytes); }
}

static void walk_frames(struct connection *c, const unsigned char *at, size_t length) {
    const unsigned char *end = at + length;
    bool is_sampled = sample_every && (c - connections) % sample_every == 0;
    uint64_t now = is_sampled ? now_ns() : 0;
    while (at < end && c->state != CLOSED) {
        if (c->skip) {
            uint64_t step = (uint64_t)(end - at) < c->skip ? (uint64_t)(end - at) : c->skip;
            at += step;
            c->skip -= step;
            if (!c->skip) count_message(c);
            continue;
        }
        size_t need = 2; /* a header may end in the next recv(): gather it byte by byte, it is rare */
        const unsigned char *head = at;
        if (c->head_bytes || end - at < 10) {
            while (at < end) {
                c->head[c->head_bytes++] = *at++;
                if (c->head_bytes >= 2) {
                    unsigned char size = c->head[1] & 0x7f;
                    need = size == 127 ? 10 : size == 126 ? 4 : 2;
                    if (c->head_bytes == need) break;
                }
            }
            if (c->head_bytes < need) return;
            head = c->head;
            c->head_bytes = 0;
        } else {
            unsigned char size = at[1] & 0x7f;
            need = size == 127 ? 10 : size == 126 ? 4 : 2;
            at += need;
        }
        uint64_t payload = head[1] & 0x7f;
        if (payload == 126) payload = (uint64_t)head[2] << 8 | head[3];
        else if (payload == 127) { payload = 0; for (int i = 2; i < 10; i++) payload = payload << 8 | head[i]; }
        c->opcode = head[0] & 0x0f;
        c->is_short = payload <= 2;
        bool is_whole = payload <= (uint64_t)(end - at);
        if (c->opcode == 9 && is_whole) {
            unsigned char pong[160];
            send_all(c, pong, masked_frame(pong, 10, at, payload));
        }
        if (is_sampled && c->opcode <= 2 && is_whole) take_sample(c, at, payload, now);
        if (payload == 0) count_message(c);
        c->skip = payload;
    }
}

static void readable(struct connection *c) {
    ssize_t got = recv(c->fd, buffer, sizeof buffer - 1, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { close_connection(c); return; }
    buffer[got] = 0; /* strtoull stops here */
    n_recvs++;
    if (c->state == SHAKING) { /* a response head is one segment on loopback */
        unsigned char *end = memmem(buffer, (size_t)got, "\r\n\r\n", 4);
        if (!end || memcmp(buffer, "HTTP/1.1 101", 12)) {
            fprintf(stderr, "handshake refused: %.*s\n", (int)got, buffer);
            exit(1);
        }
        shaken(c);
        size_t used = (size_t)(end + 4 - buffer);
        if (used < (size_t)got) walk_frames(c, buffer + used, (size_t)got - used);
        return;
    }
    n_bytes += (uint64_t)got;
    walk_frames(c, buffer, (size_t)got);
}

static void turn(int timeout_ms) {
    static struct epoll_event events[512];
    if (nap_us && n_ready == n_connections) { /* never waits in epoll, so no send() has to wake it */
        usleep((useconds_t)nap_us);
        timeout_ms = 0;
    }
    int n = epoll_wait(epoll_fd, events, 512, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (!c) continue; /* stdin: handled by the caller */
        if (c->state == CONNECTING) {
            int error = 0;
            socklen_t length = sizeof error;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
            if (error) { errno = error; die("connect"); }
            connected(c);
        } else if (c->state != CLOSED) readable(c);
    }
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double percentile_ms(double share) {
    if (!n_latencies) return -1;
    size_t at = (size_t)(share * (double)(n_latencies - 1) + 0.5);
    return latencies_us[at] / 1000.0;
}

static void report(const char *event, double elapsed_s) {
    qsort(latencies_us, n_latencies, sizeof *latencies_us, by_size);
    printf("{\"event\": \"%s\", \"elapsed_s\": %.6f, \"connections\": %d, \"messages\": %llu, \"bytes\": %llu, "
           "\"recvs\": %llu, \"closed\": %llu, \"out_of_order\": %llu, \"samples\": %zu, "
           "\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f}\n",
           event, elapsed_s, n_ready, (unsigned long long)n_messages, (unsigned long long)n_bytes,
           (unsigned long long)n_recvs, (unsigned long long)n_closed, (unsigned long long)n_out_of_order, n_latencies,
           percentile_ms(0.5), percentile_ms(0.99), percentile_ms(1));
}

static void wait_for(uint64_t messages, long timeout_ms) {
    uint64_t start = now_ns();
    while (n_messages < messages && now_ns() - start < (uint64_t)timeout_ms * 1000000u) turn(20);
    report("waited", (double)(now_ns() - start) / 1e9);
}

static void flood(uint64_t messages, long unanswered, const char *message) {
    flood_bytes = masked_frame(flood_frame, 1, message, strlen(message));
    uint64_t start = now_ns(), first = (uint64_t)unanswered * (uint64_t)n_connections;
    if (messages < first) messages = first;
    n_messages = 0;
    flood_left = messages - first;
    for (long w = 0; w < unanswered; w++)
        for (int i = 0; i < n_connections; i++) send_all(&connections[i], flood_frame, flood_bytes);
    while (n_messages < messages && now_ns() - start < 60000000000u) turn(20);
    report("flooded", (double)(now_ns() - start) / 1e9);
}

static void obey(char *line) {
    unsigned long long messages;
    long number;
    int used = 0;
    if (!strncmp(line, "mark", 4)) {
        n_messages = n_bytes = n_recvs = n_closed = n_out_of_order = 0;
        n_latencies = 0;
        report("marked", 0);
    } else if (sscanf(line, "wait %llu %ld", &messages, &number) == 2) wait_for(messages, number);
    else if (sscanf(line, "flood %llu %ld %n", &messages, &number, &used) == 2 && used) flood(messages, number, line + used);
    else { fprintf(stderr, "unknown command: %s\n", line); exit(2); }
}

static void parse_hex(const char *hex) {
    for (; *hex; hex += 2) {
        if (!hex[1] || n_first_binary == sizeof first_binary
            || sscanf(hex, "%2hhx", &first_binary[n_first_binary++]) != 1) {
            fprintf(stderr, "--send-hex needs pairs of hexadecimal digits\n");
            exit(2);
        }
    }
}

static void parse_arguments(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--raw")) { raw = true; continue; }
        if (++i >= argc) { fprintf(stderr, "%s needs a value\n", name); exit(2); }
        if (!strcmp(name, "--port")) port = atoi(argv[i]);
        else if (!strcmp(name, "--connections")) n_connections = atoi(argv[i]);
        else if (!strcmp(name, "--path")) path = argv[i];
        else if (!strcmp(name, "--send")) first_message = argv[i];
        else if (!strcmp(name, "--send-hex")) parse_hex(argv[i]);
        else if (!strcmp(name, "--replies")) n_replies = atoi(argv[i]);
        else if (!strcmp(name, "--sample")) sample_every = atoi(argv[i]);
        else if (!strcmp(name, "--sources")) n_sources = atoi(argv[i]);
        else if (!strcmp(name, "--nap-us")) nap_us = atoi(argv[i]);
        else if (!strcmp(name, "--window")) window = atoi(argv[i]);
        else if (!strcmp(name, "--protocol")) protocol = argv[i];
        else { fprintf(stderr, "unknown option %s\n", name); exit(2); }
    }
}

int main(int argc, char **argv) {
    parse_arguments(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, NULL, _IOLBF, 0);
    connections = calloc((size_t)n_connections, sizeof *connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || epoll_fd < 0) die("start");

    uint64_t start = now_ns();
    while (n_ready < n_connections) {
        while (n_started < n_connections && n_pending < window) start_connection();
        turn(1000);
        if (n_closed) { fprintf(stderr, "a connection was closed while connecting\n"); return 1; }
    }
    report("ready", (double)(now_ns() - start) / 1e9);

    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event)) die("stdin");
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    char line[8192];
    for (;;) { /* one command at a time: the harness waits for the answer */
        turn(-1);
        ssize_t got = read(0, line, sizeof line - 1);
        if (got == 0) return 0;
        if (got < 0) continue;
        line[got] = 0;
        line[strcspn(line, "\n")] = 0;
        obey(line);
    }
}
