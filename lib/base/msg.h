/* What a tool says to a person, on stderr: stages, progress, the last line of a failure. */
#ifndef QLAB_BASE_MSG_H
#define QLAB_BASE_MSG_H

#include <stdbool.h>
#include <stdint.h>

/* tool: the name that leads every line. Also installs the SIGINT/SIGTERM handler that removes unfinished output
 * (base/file.h) and exits with 130. */
void msg_init(const char *tool);
void msg_quiet(bool quiet);
const char *msg_tool(void);

/* One line "tool: …" and exit(1); partial output is removed. die_usage exits with 2 and points at --help. */
void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
void die_usage(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* A line a person should see even though the run goes on ("tool: warning: …"); silent with -q. */
void msg_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Start of a stage: one plain line; silent with -q. */
void msg_stage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Progress of the current stage: a bar with rate and time left on a terminal (at most 5 redraws a second), nothing
 * elsewhere. unit names what is counted ("tokens", "B"). progress_end clears the bar. Call from one thread. */
struct progress {
    const char *label, *unit;
    int64_t total;
    double t0, t_last;
    bool on;
};
void progress_begin(struct progress *p, const char *label, const char *unit, int64_t total);
void progress_at(struct progress *p, int64_t done);
void progress_end(struct progress *p);

/* Seconds on the monotonic clock. */
double clock_s(void);

#endif
