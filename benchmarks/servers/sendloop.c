/* The baseline: the cost of the kernel alone. Accepts connections, and on command loops send() over them.
 *
 *   sendloop FRAME_HEX [io_uring]
 *
 * io_uring: the sends of one message to all connections are requests in a queue, up to 1,024 for one system call.
 * stdout: {"port": P} once, then one line for each command of stdin:
 *   pass PASSES BURST GAP_US   PASSES times: BURST times one send() of the frame to every connection
 *   stat                       {"connections": N}
 * Ends when stdin ends. No batching: one send() or request is one delivery.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

static int *clients, n_clients, room;
static unsigned char frame[65536];
static size_t frame_bytes;
static int by_ring;

static void die(const char *what) { perror(what); exit(1); }

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN) return;
            if (errno == ECONNABORTED || errno == EINTR) continue;
            die("accept4");
        }
        int one = 1; /* as asyncio and uvloop set it */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (n_clients == room) {
            room = room ? room * 2 : 1024;
            clients = realloc(clients, (size_t)room * sizeof *clients);
            if (!clients) die("realloc");
        }
        clients[n_clients++] = fd;
    }
}

static void send_frame(int fd, size_t done) {
    while (done < frame_bytes) {
        ssize_t sent = send(fd, frame + done, frame_bytes - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) { done += (size_t)sent; continue; }
        if (errno != EAGAIN && errno != EINTR) die("send");
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        poll(&wait, 1, 1000);
    }
}

#ifdef IORING_FEAT_SINGLE_MMAP
static struct {
    int fd;
    unsigned *tail, *order, mask, entries, *done_head, *done_tail, done_mask;
    struct io_uring_sqe *requests;
    struct io_uring_cqe *done;
} ring;

static void *map_ring(size_t size, off_t offset) {
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, offset);
    if (found == MAP_FAILED) die("io_uring");
    return found;
}

static void open_ring(void) {
    struct io_uring_params params = {0};
    ring.fd = (int)syscall(SYS_io_uring_setup, 1024, &params);
    if (ring.fd < 0) die("io_uring");
    if (!(params.features & IORING_FEAT_SINGLE_MMAP)) { errno = ENOSYS; die("io_uring"); }
    size_t requests_end = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t done_end = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *queues = map_ring(requests_end > done_end ? requests_end : done_end, IORING_OFF_SQ_RING);
    ring.requests = map_ring(params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
    ring.entries = params.sq_entries;
    ring.tail = (unsigned *)(queues + params.sq_off.tail);
    ring.order = (unsigned *)(queues + params.sq_off.array);
    ring.mask = *(unsigned *)(queues + params.sq_off.ring_mask);
    ring.done_head = (unsigned *)(queues + params.cq_off.head);
    ring.done_tail = (unsigned *)(queues + params.cq_off.tail);
    ring.done_mask = *(unsigned *)(queues + params.cq_off.ring_mask);
    ring.done = (struct io_uring_cqe *)(queues + params.cq_off.cqes);
}

/* Take what is done; a socket that did not take all gets the rest by send(). */
static unsigned take_done(void) {
    unsigned head = *ring.done_head, tail = __atomic_load_n(ring.done_tail, __ATOMIC_ACQUIRE), count = tail - head;
    for (; head != tail; head++) {
        struct io_uring_cqe *one = &ring.done[head & ring.done_mask];
        if (one->res < 0 && one->res != -EAGAIN) { errno = -one->res; die("io_uring"); }
        if (one->res != (int)frame_bytes) send_frame(clients[one->user_data], one->res < 0 ? 0 : (size_t)one->res);
    }
    __atomic_store_n(ring.done_head, head, __ATOMIC_RELEASE);
    return count;
}

static void send_by_ring(void) {
    for (int next = 0; next < n_clients;) {
        unsigned tail = *ring.tail, count = 0, taken = 0, done = 0;
        for (; next < n_clients && count < ring.entries; next++, count++, tail++) {
            ring.requests[tail & ring.mask] = (struct io_uring_sqe){
                .opcode = IORING_OP_SEND, .fd = clients[next], .addr = (uintptr_t)frame, .len = (unsigned)frame_bytes,
                .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL, .user_data = (unsigned)next};
            ring.order[tail & ring.mask] = tail & ring.mask;
        }
        __atomic_store_n(ring.tail, tail, __ATOMIC_RELEASE);
        while (done < count) {
            long result = syscall(SYS_io_uring_enter, ring.fd, count - taken, count - done, IORING_ENTER_GETEVENTS, NULL, 0);
            if (result < 0 && errno != EINTR) die("io_uring_enter");
            if (result > 0) taken += (unsigned)result;
            done += take_done();
        }
    }
}
#else
static void open_ring(void) { fprintf(stderr, "io_uring: no header of Linux when this was compiled\n"); exit(1); }
static void send_by_ring(void) {}
#endif

static void pass(long passes, long burst, long gap_us) {
    struct timespec gap = {.tv_sec = gap_us / 1000000, .tv_nsec = gap_us % 1000000 * 1000};
    for (long p = 0; p < passes; p++) {
        for (long b = 0; b < burst; b++) {
            if (by_ring) { send_by_ring(); continue; }
            for (int i = 0; i < n_clients; i++) send_frame(clients[i], 0);
        }
        if (gap_us) nanosleep(&gap, NULL);
    }
    printf("{\"passes\": %ld}\n", passes);
}

int main(int argc, char **argv) {
    by_ring = argc == 3 && !strcmp(argv[2], "io_uring");
    if (argc != 2 && !by_ring) { fprintf(stderr, "usage: sendloop FRAME_HEX [io_uring]\n"); return 2; }
    if (by_ring) open_ring();
    frame_bytes = strlen(argv[1]) / 2;
    if (frame_bytes > sizeof frame) die("frame");
    for (size_t i = 0; i < frame_bytes; i++) {
        unsigned byte;
        if (sscanf(argv[1] + 2 * i, "%2x", &byte) != 1) die("hex");
        frame[i] = (unsigned char)byte;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));

    char line[256];
    struct pollfd polls[2] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    for (;;) {
        if (poll(polls, 2, -1) < 0 && errno != EINTR) die("poll");
        if (polls[0].revents) accept_all(listener);
        if (!polls[1].revents) continue;
        ssize_t got = read(0, line, sizeof line - 1); /* one command at a time: the harness waits for the answer */
        if (got <= 0) return 0;
        line[got] = 0;
        long passes, burst, gap_us;
        accept_all(listener);
        if (sscanf(line, "pass %ld %ld %ld", &passes, &burst, &gap_us) == 3) pass(passes, burst, gap_us);
        else printf("{\"connections\": %d}\n", n_clients);
    }
}
