/* The floor that a server stands on: a bare loop that writes one frame to many loopback sockets.
 *
 *     floor SOCKETS BYTES ROUNDS_PER_SECOND SECONDS [CORE READER_CORE]
 *
 * 0 rounds a second: as fast as it goes. A process of its own reads. Prints one JSON object: writes
 * per CPU second of the writer, which is what a server could do at best that makes one write for
 * each delivery and nothing else.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void pin(const char *core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(atoi(core), &cores);
    if (sched_setaffinity(0, sizeof cores, &cores) < 0) fail("sched_setaffinity");
}

static void read_all(struct sockaddr_in address, int sockets) {
    int poll_fd = epoll_create1(0);
    for (int i = 0; i < sockets; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
    }
    for (;;) {
        struct epoll_event events[256];
        static char bytes[256 * 1024];
        int count = epoll_wait(poll_fd, events, 256, -1);
        for (int i = 0; i < count; i++)
            if (recv(events[i].data.fd, bytes, sizeof bytes, MSG_DONTWAIT) == 0) exit(0);
    }
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 7) {
        fputs("usage: floor SOCKETS BYTES ROUNDS_PER_SECOND SECONDS [CORE READER_CORE]\n", stderr);
        return 2;
    }
    int sockets = atoi(argv[1]), size = atoi(argv[2]);
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 1024) < 0)
        fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    pid_t reader = fork();
    if (reader == 0) {
        if (argc == 7) pin(argv[6]);
        close(listener);
        read_all(address, sockets);
    }
    if (argc == 7) pin(argv[5]);
    int *fds = malloc(sockets * sizeof *fds);
    char *frame = calloc(1, size);
    for (int i = 0; i < sockets; i++) {
        fds[i] = accept(listener, NULL, NULL);
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    }
    uint64_t writes = 0;
    double begin = now(), begin_cpu = cpu(), due = begin;
    while (now() < begin + seconds) {
        for (int i = 0; i < sockets; i++) {
            if (send(fds[i], frame, size, MSG_DONTWAIT | MSG_NOSIGNAL) == size) writes++;
            else if (errno != EAGAIN) fail("send");
        }
        if (rate > 0) {
            due += 1 / rate;
            double wait = due - now();
            if (wait > 0) nanosleep(&(struct timespec){wait, (wait - (long)wait) * 1e9}, NULL);
        }
    }
    double used = cpu() - begin_cpu;
    printf("{\"writes\": %lu, \"cpu\": %.3f, \"writes_per_cpu_second\": %.1f}\n", writes, used,
           writes / used);
    kill(reader, SIGKILL);
    return 0;
}
