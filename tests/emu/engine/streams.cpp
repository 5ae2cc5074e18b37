/* Streams, events, graphs, copies, launches. Queued work runs when somebody waits for it (cfg.defer_streams), so that
 * a wait that is missing shows as wrong numbers; copies from and to pageable memory are done before the call returns. */
#include "engine.h"
#include "machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

using emu::cfg, emu::counted, emu::device_access, emu::die, emu::the_machine;
using work = std::function<void()>;

struct emu_graph {
    std::vector<work> nodes;
};
struct emu_graph_exec {
    std::vector<work> nodes;
};
struct emu_stream {
    std::deque<work> queue;
    uint64_t queued = 0, done = 0;
    bool waits_for_default = true;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::unique_ptr<emu_graph> graph;
};
struct emu_event {
    emu_stream *stream = nullptr; /* of the last record; it is reached when that many pieces of work are done */
    uint64_t at = 0;
    bool timed = true, reached = false;
    std::chrono::steady_clock::time_point time;
};

static std::vector<emu_stream *> streams;
static size_t n_handles;
static cudaError_t last_error, sticky_error;

static emu_stream *of(cudaStream_t s)
{
    static emu_stream *legacy;
    if (!legacy) streams.push_back(legacy = new emu_stream);
    return s ? s : legacy;
}

/* Run s's work until `upto` pieces of it are done. */
static void drain(emu_stream *s, uint64_t upto)
{
    if (s->done >= upto || s->queue.empty()) return;
    device_access open;
    while (s->done < upto && !s->queue.empty()) {
        work w = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++;
        if (!sticky_error) w();
    }
}
static void drain(emu_stream *s) { drain(s, s->queued); }

/* The legacy default stream starts after all that others have queued, and they after it. */
static void order_with_default(emu_stream *s)
{
    emu_stream *legacy = of(nullptr);
    if (s == legacy) {
        for (emu_stream *o : streams)
            if (o != s && o->waits_for_default) drain(o);
    } else if (s->waits_for_default) {
        drain(legacy);
    }
}

static cudaError_t enqueue(cudaStream_t handle, work w)
{
    emu_stream *s = of(handle);
    if (s->capture == cudaStreamCaptureStatusInvalidated) return emu::fail(cudaErrorStreamCaptureInvalidated);
    if (s->capture == cudaStreamCaptureStatusActive) {
        s->graph->nodes.push_back(std::move(w));
        return cudaSuccess;
    }
    order_with_default(s);
    s->queue.push_back(std::move(w));
    s->queued++;
    if (!cfg.defer_streams) drain(s);
    return sticky_error;
}

namespace emu {

cudaError_t sticky() { return sticky_error; }
cudaError_t fail(cudaError_t e)
{
    if (e != cudaSuccess) last_error = e;
    return e;
}
void drain_all()
{
    for (size_t i = 0; i < streams.size(); i++) drain(streams[i]);
}
void drain_blocking()
{
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i]->waits_for_default) drain(streams[i]);
}
bool capturing_globally()
{
    bool any = false;
    for (emu_stream *s : streams)
        if (s->capture == cudaStreamCaptureStatusActive && s->mode != cudaStreamCaptureModeRelaxed) {
            s->capture = cudaStreamCaptureStatusInvalidated;
            any = true;
        }
    return any;
}
size_t handles() { return n_handles; }
void reset_errors()
{
    for (emu_stream *s : streams) {
        if (!s->queue.empty() && !sticky_error) die("errors are reset while work is queued");
        s->queue.clear();
        s->done = s->queued;
    }
    last_error = sticky_error = cudaSuccess;
}

/* Every kernel's first launches are watched for reads before kernel_begin; each time costs two system calls. */
constexpr int closely_watched = 16;
static std::map<const void *, int> launches;

static std::map<const void *, size_t> raised; /* kernels with cudaFuncAttributeMaxDynamicSharedMemorySize */

cudaError_t launch(const char *name, const void *function, dim3 grid, dim3 block, size_t smem, cudaStream_t s,
                   std::function<void()> body)
{
    if (sticky_error) return sticky_error;
    if (the_machine().devices < 1) return fail(cudaErrorNoDevice);
    auto r = raised.find(function);
    size_t limit = r == raised.end() ? default_smem : std::max(default_smem, r->second);
    if (!valid_shape(grid, block) || smem > limit) return fail(cudaErrorInvalidConfiguration);
    if (counted(the_machine().fail_launch)) return fail(cudaErrorLaunchFailure);
    bool dies = counted(the_machine().fail_run);
    size_t max_smem = r == raised.end() ? default_smem : 99 * 1024;
    return enqueue(s, [=] {
        if (dies) {
            sticky_error = last_error = cudaErrorLaunchFailure;
            return;
        }
        device_access open(launches[function]++ < closely_watched);
        run_grid(name, grid, block, smem, max_smem, body);
    });
}

} // namespace emu

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *)
{
    *a = {};
    a->ptxVersion = a->binaryVersion = int(emu::the_machine().capability);
    return sticky_error;
}

cudaError_t emu_func_set_attribute(const void *f, cudaFuncAttribute a, int value)
{
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return sticky_error;
    if (value < 0 || value > 99 * 1024) return emu::fail(cudaErrorInvalidValue);
    emu::raised[f] = size_t(value);
    return sticky_error;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last_error;
    last_error = sticky_error;
    return e;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

/* ---- copies */

static bool right_way(const void *dst, const void *src, size_t dn, size_t sn, cudaMemcpyKind k)
{
    bool to = k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice || (k == cudaMemcpyDefault && emu::touches_device(dst));
    bool from = k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice || (k == cudaMemcpyDefault && emu::touches_device(src));
    return (to ? emu::is_device(dst, dn) : !emu::touches_device(dst)) &&
           (from ? emu::is_device(src, sn) : !emu::touches_device(src));
}
/* Memory that is neither pinned nor the device's */
static bool pageable(const void *p) { return !emu::touches_device(p) && !emu::is_pinned(p); }

static cudaError_t copy2d(char *dst, size_t dpitch, const char *src, size_t spitch, size_t width, size_t height,
                          cudaMemcpyKind kind, cudaStream_t s)
{
    if (sticky_error) return sticky_error;
    if (!width || !height) return cudaSuccess;
    if (dpitch < width || spitch < width) return emu::fail(cudaErrorInvalidValue);
    if (!right_way(dst, src, dpitch * (height - 1) + width, spitch * (height - 1) + width, kind))
        return emu::fail(cudaErrorInvalidValue);
    if (counted(the_machine().fail_copy)) return emu::fail(cudaErrorInvalidValue);
    cudaError_t rc = enqueue(s, [=] {
        device_access open;
        if (emu::touches_device(dst)) emu::host_wrote(dst, !emu::touches_device(src));
        for (size_t r = 0; r < height; r++) memmove(dst + r * dpitch, src + r * spitch, width);
    });
    if (rc == cudaSuccess && of(s)->capture == cudaStreamCaptureStatusNone && (pageable(dst) || pageable(src))) {
        drain(of(s));
        rc = sticky_error;
    }
    return rc;
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind kind, cudaStream_t s)
{
    return copy2d(static_cast<char *>(dst), n, static_cast<const char *>(src), n, n, 1, kind, s);
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t s)
{
    return copy2d(static_cast<char *>(dst), dpitch, static_cast<const char *>(src), spitch, width, height, kind, s);
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind kind)
{
    if (emu::capturing_globally()) return emu::fail(cudaErrorStreamCaptureUnsupported);
    cudaError_t rc = cudaMemcpyAsync(dst, src, n, kind, nullptr);
    drain(of(nullptr));
    return rc ? rc : sticky_error;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s)
{
    if (sticky_error) return sticky_error;
    if (!n) return cudaSuccess;
    if (!emu::is_device(p, n)) return emu::fail(cudaErrorInvalidValue);
    return enqueue(s, [=] {
        device_access open;
        emu::host_wrote(p, false);
        memset(p, value, n);
    });
}
cudaError_t cudaMemset(void *p, int value, size_t n) { return cudaMemsetAsync(p, value, n, nullptr); }

/* ---- streams and events */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    *s = nullptr;
    if (sticky_error) return sticky_error;
    if (the_machine().devices < 1) return emu::fail(cudaErrorNoDevice);
    of(nullptr);
    *s = new emu_stream;
    (*s)->waits_for_default = !(flags & cudaStreamNonBlocking);
    streams.push_back(*s);
    n_handles++;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    auto i = std::find(streams.begin(), streams.end(), s);
    if (!s || i == streams.end()) return emu::fail(cudaErrorInvalidResourceHandle);
    drain(s);
    streams.erase(i);
    delete s;
    n_handles--;
    return sticky_error;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    emu_stream *s = of(handle);
    if (s->capture != cudaStreamCaptureStatusNone) {
        s->capture = cudaStreamCaptureStatusInvalidated;
        return emu::fail(cudaErrorStreamCaptureUnsupported);
    }
    order_with_default(s);
    drain(s);
    return emu::fail(sticky_error);
}
cudaError_t cudaDeviceSynchronize(void)
{
    if (emu::capturing_globally()) return emu::fail(cudaErrorStreamCaptureUnsupported);
    emu::drain_all();
    return emu::fail(sticky_error);
}
cudaError_t cudaDeviceReset(void) { return cudaDeviceSynchronize(); }
/* Asking makes a piece of progress, so that a host that polls gets there. */
cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    emu_stream *s = of(handle);
    if (s->queue.empty()) return sticky_error;
    drain(s, s->done + 1);
    return sticky_error ? sticky_error : cudaErrorNotReady;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    *e = nullptr;
    if (sticky_error) return sticky_error;
    *e = new emu_event;
    (*e)->timed = !(flags & cudaEventDisableTiming);
    n_handles++;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
static void reach(cudaEvent_t e)
{
    if (e->stream && !e->reached) drain(e->stream, e->at);
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    if (!e) return emu::fail(cudaErrorInvalidResourceHandle);
    reach(e);
    delete e;
    n_handles--;
    return sticky_error;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t handle)
{
    if (sticky_error) return sticky_error;
    emu_stream *s = of(handle);
    if (s->capture != cudaStreamCaptureStatusNone) return emu::fail(cudaErrorNotSupported);
    e->stream = s;
    e->at = s->queued + 1;
    e->reached = false;
    uint64_t at = e->at;
    return enqueue(handle, [=] {
        if (e->at == at) e->reached = true;
        e->time = std::chrono::steady_clock::now();
    });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    if (sticky_error) return sticky_error;
    if (of(s)->capture != cudaStreamCaptureStatusNone) return emu::fail(cudaErrorNotSupported);
    if (!e->stream) return cudaSuccess;
    emu_stream *from = e->stream;
    uint64_t at = e->at;
    return enqueue(s, [=] { drain(from, at); });
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    reach(e);
    return emu::fail(sticky_error);
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    if (sticky_error) return sticky_error;
    if (!e->stream || e->reached) return cudaSuccess;
    drain(e->stream, e->stream->done + 1);
    return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    if (sticky_error) return sticky_error;
    if (!begin->timed || !end->timed || !begin->stream || !end->stream) return emu::fail(cudaErrorInvalidResourceHandle);
    if (!begin->reached || !end->reached) return cudaErrorNotReady;
    *ms = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
}

/* ---- graphs */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
{
    if (sticky_error) return sticky_error;
    if (!s || s->capture != cudaStreamCaptureStatusNone) return emu::fail(cudaErrorStreamCaptureUnsupported);
    s->capture = cudaStreamCaptureStatusActive;
    s->mode = mode;
    s->graph.reset(new emu_graph);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    *g = nullptr;
    if (!s || s->capture == cudaStreamCaptureStatusNone) return emu::fail(cudaErrorStreamCaptureUnmatched);
    bool broken = s->capture == cudaStreamCaptureStatusInvalidated || counted(the_machine().fail_capture);
    s->capture = cudaStreamCaptureStatusNone;
    if (broken) {
        s->graph.reset();
        return emu::fail(cudaErrorStreamCaptureInvalidated);
    }
    *g = s->graph.release();
    n_handles++;
    return sticky_error;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status)
{
    *status = of(s)->capture;
    return sticky_error;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n)
{
    if (nodes) return emu::fail(cudaErrorNotSupported);
    *n = g->nodes.size();
    return sticky_error;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long)
{
    *x = nullptr;
    if (sticky_error) return sticky_error;
    *x = new emu_graph_exec{g->nodes};
    n_handles++;
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return sticky_error; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    if (sticky_error) return sticky_error;
    for (const work &w : x->nodes)
        if (cudaError_t rc = enqueue(s, w)) return rc;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    delete x;
    n_handles--;
    return sticky_error;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    n_handles--;
    return sticky_error;
}
