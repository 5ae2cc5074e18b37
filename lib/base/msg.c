#include "base/msg.h"

#include "base/file.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *tool_name = "qlab";
static bool quiet_on;
static bool bar_drawn;

static void on_signal(int sig)
{
    (void)sig;
    file_remove_unfinished(); /* async-signal-safe: only unlink and rmdir */
    _exit(130);
}

/* A page of a mapped file that cannot be read. What is no map of ours is a crash like any other. */
static void on_bus(int sig, siginfo_t *info, void *context)
{
    (void)context;
    const char *path = file_map_path(info->si_addr);
    if (!path) {
        signal(sig, SIG_DFL); /* the fault comes again */
        return;
    }
    char buf[1024];
    size_t n = 0;
    const char *const parts[] = {bar_drawn ? "\r\033[K" : "", tool_name, ": ", path,
                                 ": cannot be read to its end any more (a file that stays as it was when opened was expected)\n"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (const char *s = parts[i]; *s && n < sizeof buf - (i < 4 ? 128 : 0); s++)
            buf[n++] = i == 3 && ((unsigned char)*s < 0x20 || *s == 0x7f) ? '?' : *s;
    (void)!write(STDERR_FILENO, buf, n);
    file_remove_unfinished();
    _exit(1);
}

/* A descriptor of these three that is closed would be given to the next file opened, and what is said to people, or the
 * record, would be written into that. Standard output is opened such that the record fails. */
static void open_standard(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 1 ? O_RDONLY : O_RDWR) < 0) _exit(1);
}

void msg_init(const char *tool)
{
    tool_name = tool;
    open_standard();
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_signal;
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    struct sigaction bus = sa;
    bus.sa_sigaction = on_bus;
    bus.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &bus, NULL);
    struct sigaction hup;
    if (sigaction(SIGHUP, NULL, &hup) || hup.sa_handler != SIG_IGN) sigaction(SIGHUP, &sa, NULL); /* nohup */
    signal(SIGPIPE, SIG_IGN); /* a closed stdout is a failed write, reported like any other */
}

void msg_quiet(bool quiet) { quiet_on = quiet; }
const char *msg_tool(void) { return tool_name; }

static void line(const char *kind, const char *fmt, va_list ap)
{
    if (bar_drawn) fputs("\r\033[K", stderr);
    bar_drawn = false;
    fprintf(stderr, "%s: %s", tool_name, kind);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

_Noreturn void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    line("", fmt, ap);
    va_end(ap);
    file_remove_unfinished();
    exit(1);
}

_Noreturn void die_usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (bar_drawn) fputs("\r\033[K", stderr);
    fprintf(stderr, "%s: ", tool_name);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, " (see %s --help)\n", tool_name);
    va_end(ap);
    file_remove_unfinished();
    exit(2);
}

void msg_warn(const char *fmt, ...)
{
    if (quiet_on) return;
    va_list ap;
    va_start(ap, fmt);
    line("warning: ", fmt, ap);
    va_end(ap);
}

void msg_stage(const char *fmt, ...)
{
    if (quiet_on) return;
    va_list ap;
    va_start(ap, fmt);
    line("", fmt, ap);
    va_end(ap);
}

double clock_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_begin(struct progress *p, const char *label, const char *unit, int64_t total)
{
    p->label = label;
    p->unit = unit;
    p->total = total;
    p->t0 = clock_s();
    p->t_last = 0;
    p->on = !quiet_on && isatty(STDERR_FILENO);
}

static void scaled(char *buf, size_t n, double v)
{
    const char *suffix[] = {"", "k", "M", "G", "T"};
    int i = 0;
    while (v >= 10000 && i < 4) {
        v /= 1000;
        i++;
    }
    snprintf(buf, n, v < 100 && v != (double)(int64_t)v ? "%.1f%s" : "%.0f%s", v, suffix[i]);
}

void progress_at(struct progress *p, int64_t done)
{
    if (!p->on) return;
    double now = clock_s();
    if (now - p->t_last < 0.2 && done < p->total) return;
    p->t_last = now;
    double part = p->total > 0 ? (double)done / (double)p->total : 0;
    if (part > 1) part = 1;
    double spent = now - p->t0, rate = spent > 0 ? (double)done / spent : 0;
    int left = part > 0 ? (int)(spent * (1 - part) / part + 0.5) : 0;
    char bar[31], r[32];
    int full = (int)(part * 30);
    for (int i = 0; i < 30; i++) bar[i] = i < full ? '#' : '.';
    bar[30] = 0;
    scaled(r, sizeof r, rate);
    fprintf(stderr, "\r\033[K%s [%s] %3.0f%%  %s %s/s  %d:%02d left", p->label, bar, 100 * part, r, p->unit, left / 60,
            left % 60);
    fflush(stderr);
    bar_drawn = true;
}

void progress_end(struct progress *p)
{
    if (p->on && bar_drawn) fputs("\r\033[K", stderr);
    bar_drawn = false;
    p->on = false;
}
