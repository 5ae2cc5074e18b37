#include "model/model.h"

#include "base/mem.h"
#include "model/plan.h"

#include <string.h>

int64_t kv_bytes(const struct model *m, int64_t capacity)
{
    return plan_kv_bytes(&m->cfg, m->be->compute, capacity);
}

int kv_alloc(struct kv_cache *kv, const struct model *m, int64_t capacity, struct err *e)
{
    memset(kv, 0, sizeof *kv);
    kv->dtype = plan_kv_dtype(m->be->compute);
    kv->n_layers = m->cfg.n_layers;
    kv->capacity = plan_kv_capacity(capacity);
    kv->n_kv_heads = m->cfg.n_kv_heads;
    kv->head_dim = m->cfg.head_dim;
    kv->bytes = (size_t)kv_bytes(m, capacity);
    kv->k = m->be->ops->alloc(m->be, kv->bytes / 2, e);
    if (kv->k) kv->v = m->be->ops->alloc(m->be, kv->bytes / 2, e);
    if (kv->v) return 0;
    int64_t tokens = kv->capacity, bytes = (int64_t)kv->bytes;
    kv_free(kv, m);
    err_prefix(e, "KV cache of %lld tokens", (long long)capacity);
    if (m->be->ops->describe) {
        struct device d;
        m->be->ops->describe(m->be, &d);
        err_suffix(e, "; %lld tokens would fit", (long long)(d.free_bytes / (bytes / tokens) / KV_ROUND * KV_ROUND));
    }
    return -1;
}

void kv_free(struct kv_cache *kv, const struct model *m)
{
    if (kv->k) m->be->ops->free(m->be, kv->k);
    if (kv->v) m->be->ops->free(m->be, kv->v);
    memset(kv, 0, sizeof *kv);
}
