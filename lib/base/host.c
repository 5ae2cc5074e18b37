#include "base/host.h"

#include "base/msg.h"
#include "base/par.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#if defined(__x86_64__)
#include <cpuid.h>
#define CPU_HAS(x) __builtin_cpu_supports(x)
#else
#define CPU_HAS(x) 0
#endif

bool isa_has_avxvnni(void)
{
#if defined(__x86_64__)
    unsigned a, b, c, d;
    return CPU_HAS("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
#else
    return false;
#endif
}

bool isa_has_avxvnni_evex(void) { return CPU_HAS("avx512vl") && CPU_HAS("avx512vnni"); }

static enum isa detected(void)
{
    if (!(CPU_HAS("avx2") && CPU_HAS("fma"))) return ISA_PLAIN;
    if (CPU_HAS("avx512f") && CPU_HAS("avx512bw") && CPU_HAS("avx512dq") && CPU_HAS("avx512vl")) return ISA_AVX512;
    return isa_has_avxvnni() ? ISA_AVXVNNI : ISA_AVX2;
}

const char *isa_name(enum isa isa) { return (const char *[]){"plain", "avx2", "avxvnni", "avx512"}[isa]; }

enum isa isa_best(void)
{
    static int chosen = -1;
    if (chosen >= 0) return (enum isa)chosen;
    enum isa have = detected();
    const char *want = getenv("QLAB_ISA");
    if (!want || !*want || !strcmp(want, "auto")) return (enum isa)(chosen = (int)have);
    for (int i = 0; i <= ISA_AVX512; i++)
        if (!strcmp(want, isa_name((enum isa)i))) {
            if (i > (int)have || (i == ISA_AVXVNNI && !isa_has_avxvnni() && !isa_has_avxvnni_evex()))
                die("QLAB_ISA=%s: this processor offers %s%s", want, isa_name(have),
                    i > (int)have ? " at best" : " without it");
            return (enum isa)(chosen = i);
        }
    die("QLAB_ISA=%s: unknown (plain, avx2, avxvnni, avx512 or auto was expected)", want);
}

bool isa_has_vnni(void) { return isa_best() == ISA_AVX512 && CPU_HAS("avx512vnni"); }
bool isa_has_bf16(void) { return isa_best() == ISA_AVX512 && CPU_HAS("avx512bf16"); }

static void cpu_name(char *out, size_t n)
{
    snprintf(out, n, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f) return;
    char buf[512];
    while (fgets(buf, sizeof buf, f)) {
        char *c = strchr(buf, ':');
        if (!c || strncmp(buf, "model name", 10)) continue;
        c += strspn(c, ": \t");
        c[strcspn(c, "\n")] = 0;
        snprintf(out, n, "%s", c);
        break;
    }
    fclose(f);
}

json_t *host_json(void)
{
    char cpu[256];
    cpu_name(cpu, sizeof cpu);
    json_t *isa = json_array();
#if defined(__x86_64__)
#define ADD(name, gcc) \
    if (CPU_HAS(gcc)) json_array_append_new(isa, json_string(name))
    ADD("avx2", "avx2");
    ADD("fma", "fma");
    ADD("avx512f", "avx512f");
    ADD("avx512bw", "avx512bw");
    ADD("avx512_vnni", "avx512vnni");
    ADD("avx512_bf16", "avx512bf16");
#undef ADD
    if (isa_has_avxvnni()) json_array_append_new(isa, json_string("avx_vnni"));
#endif
    struct utsname u;
    char os[256] = "unknown";
    if (uname(&u) == 0) snprintf(os, sizeof os, "%s %s %s", u.sysname, u.release, u.machine);
    json_t *h = json_object();
    json_object_set_new(h, "cpu", json_string(cpu));
    json_object_set_new(h, "cores", json_integer(par_cores()));
    json_object_set_new(h, "isa", isa);
    json_object_set_new(h, "isa_used", json_string(isa_name(isa_best())));
    json_object_set_new(h, "gpu", json_null());
    json_object_set_new(h, "driver", json_null());
    json_object_set_new(h, "os", json_string(os));
    return h;
}
