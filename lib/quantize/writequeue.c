#include "quantize/writequeue.h"

#include "base/mem.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct pending {
    struct pending *next;
    struct qbuffer b;
    const struct tensor *src; /* not NULL: it is what is written */
    int64_t bytes;            /* of b */
};

/* failed: an earlier one */
static int write_one(struct st_writer *w, struct pending *p, bool failed, struct err *e)
{
    int rc = 0;
    if (p->src) {
        if (!failed) rc = st_writer_append(w, p->src->data, p->src->n_bytes, e);
        checkpoint_drop(p->src);
    } else {
        if (!failed) rc = container_append(w, &p->b, e);
        qbuffer_free(&p->b);
    }
    return rc;
}

static void *write_all(void *ctx)
{
    struct write_queue *q = ctx;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        while (!q->first && !q->ends) pthread_cond_wait(&q->changed, &q->lock);
        struct pending *p = q->first;
        struct err e;
        if (!p) break;
        bool failed = q->rc != 0;
        pthread_mutex_unlock(&q->lock);
        int rc = write_one(q->w, p, failed, &e);
        pthread_mutex_lock(&q->lock);
        if (rc) q->rc = rc, q->e = e;
        q->first = p->next; /* only now: an empty queue means that all is written */
        if (!q->first) q->last = &q->first;
        q->bytes -= p->bytes;
        pthread_cond_broadcast(&q->changed);
        free(p);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

void write_queue_begin(struct write_queue *q, struct st_writer *w, int64_t limit)
{
    memset(q, 0, sizeof *q);
    q->w = w;
    q->limit = limit;
    q->last = &q->first;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    sigset_t all, old; /* signals go to the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    q->threaded = pthread_create(&q->thread, NULL, write_all, q) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static int said(const struct write_queue *q, struct err *e)
{
    if (q->rc) *e = q->e;
    return q->rc;
}

static int put(struct write_queue *q, struct pending one, struct err *e)
{
    if (!q->threaded) {
        int rc = write_one(q->w, &one, q->rc != 0, &q->e);
        if (rc) q->rc = rc;
        return said(q, e);
    }
    struct pending *p = mem_new(1, sizeof *p);
    *p = one;
    pthread_mutex_lock(&q->lock);
    while (q->bytes > q->limit && p->bytes) pthread_cond_wait(&q->changed, &q->lock);
    *q->last = p;
    q->last = &p->next;
    q->bytes += p->bytes;
    int rc = said(q, e);
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    return rc;
}

int write_queue_codes(struct write_queue *q, const struct qbuffer *b, struct err *e)
{
    return put(q, (struct pending){.b = *b, .bytes = b->w.bytes}, e);
}

int write_queue_tensor(struct write_queue *q, const struct tensor *src, struct err *e)
{
    return put(q, (struct pending){.src = src}, e);
}

int write_queue_flush(struct write_queue *q, struct err *e)
{
    pthread_mutex_lock(&q->lock);
    while (q->first) pthread_cond_wait(&q->changed, &q->lock);
    int rc = said(q, e);
    pthread_mutex_unlock(&q->lock);
    return rc;
}

int write_queue_end(struct write_queue *q, struct err *e)
{
    int rc = write_queue_flush(q, e);
    pthread_mutex_lock(&q->lock);
    q->ends = true;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    if (q->threaded) pthread_join(q->thread, NULL);
    pthread_mutex_destroy(&q->lock);
    pthread_cond_destroy(&q->changed);
    return rc;
}
