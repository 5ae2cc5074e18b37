#include "model/model.h"

#include "base/mem.h"

#include <string.h>

/* The exact path keeps K and V as computed; the fast ones store halves, as servers do. */
static enum dtype kv_dtype(const struct model *m) { return m->be->compute == COMPUTE_F32 ? DT_F32 : DT_F16; }

int64_t kv_bytes(const struct model *m, int64_t capacity)
{
    const struct config *c = &m->cfg;
    return 2 * c->n_layers * capacity * c->n_kv_heads * c->head_dim * (int64_t)dtype_bytes(kv_dtype(m), 1);
}

int kv_alloc(struct kv_cache *kv, const struct model *m, int64_t capacity, struct err *e)
{
    memset(kv, 0, sizeof *kv);
    kv->dtype = kv_dtype(m);
    kv->n_layers = m->cfg.n_layers;
    kv->capacity = capacity;
    kv->n_kv_heads = m->cfg.n_kv_heads;
    kv->head_dim = m->cfg.head_dim;
    kv->bytes = (size_t)kv_bytes(m, capacity);
    kv->k = m->be->ops->alloc(m->be, kv->bytes / 2, e);
    if (kv->k) kv->v = m->be->ops->alloc(m->be, kv->bytes / 2, e);
    if (kv->v) return 0;
    kv_free(kv, m);
    return err_prefix(e, "KV cache of %lld tokens", (long long)capacity);
}

void kv_free(struct kv_cache *kv, const struct model *m)
{
    if (kv->k) m->be->ops->free(m->be, kv->k);
    if (kv->v) m->be->ops->free(m->be, kv->v);
    memset(kv, 0, sizeof *kv);
}
