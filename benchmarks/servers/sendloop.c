/* The baseline: the cost of the kernel alone. Accepts connections, and on command loops send() over them.
 *
 *   sendloop FRAME_HEX
 *
 * stdout: {"port": P} once, then one line for each command of stdin:
 *   pass PASSES BURST GAP_US   PASSES times: BURST times one send() of the frame to every connection
 *   stat                       {"connections": N}
 * Ends when stdin ends. No batching: one send() is one delivery.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int *clients, n_clients, room;
static unsigned char frame[65536];
static size_t frame_bytes;

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

static void send_frame(int fd) {
    size_t done = 0;
    while (done < frame_bytes) {
        ssize_t sent = send(fd, frame + done, frame_bytes - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) { done += (size_t)sent; continue; }
        if (errno != EAGAIN && errno != EINTR) die("send");
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        poll(&wait, 1, 1000);
    }
}

static void pass(long passes, long burst, long gap_us) {
    struct timespec gap = {.tv_sec = gap_us / 1000000, .tv_nsec = gap_us % 1000000 * 1000};
    for (long p = 0; p < passes; p++) {
        for (long b = 0; b < burst; b++)
            for (int i = 0; i < n_clients; i++) send_frame(clients[i]);
        if (gap_us) nanosleep(&gap, NULL);
    }
    printf("{\"passes\": %ld}\n", passes);
}

int main(int argc, char **argv) {
    if (argc != 2) { fprintf(stderr, "usage: sendloop FRAME_HEX\n"); return 2; }
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
