/* Tensors on their way to a file, written in the order they came by a thread of its own while the next ones are made. */
#ifndef QLAB_QUANTIZE_WRITEQUEUE_H
#define QLAB_QUANTIZE_WRITEQUEUE_H

#include "quantize/container.h"

#include <pthread.h>

struct pending;

struct write_queue {
    struct st_writer *w;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    bool threaded, ends;
    struct pending *first, **last;
    int64_t bytes, limit; /* of codes that wait; tensors lie in the checkpoint's map and may be any number */
    int rc;        /* of the first that failed; nothing is written after it */
    struct err e;
};

/* limit: bytes of codes that may wait (one more item goes beyond it) */
void write_queue_begin(struct write_queue *q, struct st_writer *w, int64_t limit);
/* Codes, which it takes over, or a tensor, whose pages are given back once it is written. Waits while too many wait.
 * −1: an earlier one could not be written. */
int write_queue_codes(struct write_queue *q, const struct qbuffer *b, struct err *e);
int write_queue_tensor(struct write_queue *q, const struct tensor *src, struct err *e);
/* Waits until everything is written: then the writer may be used directly. */
int write_queue_flush(struct write_queue *q, struct err *e);
int write_queue_end(struct write_queue *q, struct err *e);

#endif
