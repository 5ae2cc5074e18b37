/* ldmatrix and mma.sync: the fragment layouts of the PTX ISA ("Matrix multiply-accumulate operation using mma
 * instruction", "ldmatrix"). Integers exactly; floats with products exact and sums in f32 in order of k, where a
 * device's order is its own. */
#ifndef EMU_MATRIX_H
#define EMU_MATRIX_H

#include "engine.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace emu {

/* ---- ldmatrix: X matrices of 8 rows of 16 bytes; lane 8m + i brings the address of row i of matrix m */

template <int X> struct row_pointers {
    const char *p[X][2]; /* of each matrix, the row or (transposed) the two rows that this lane reads */
};
template <int X, bool Trans> void ldmatrix_run(const lanes &w)
{
    for (int m = 0; m < X; m++) {
        const char *row[8];
        for (int i = 0; i < 8; i++) {
            row[i] = *static_cast<const char *const *>(w.arg(m * 8 + i, m * 8 + i));
            if (uintptr_t(row[i]) % 16 || !in_shared(row[i], 16))
                die("ldmatrix: the address of lane %d is misaligned or outside shared arrays", m * 8 + i);
            bool conflict = false;
            for (int j = 0; j < i; j++)
                conflict = conflict || (row[i] != row[j] && uintptr_t(row[i]) / 16 % 8 == uintptr_t(row[j]) / 16 % 8);
            counts.ldmatrix_conflicts += conflict;
        }
        for (int l = 0; l < 32; l++)
            for (int j = 0; j < 2; j++) {
                w.arg(l, l);
                static_cast<row_pointers<X> *>(w.out[l])->p[m][j] = Trans ? row[l % 4 * 2 + j] + l / 4 * 2
                                                                         : row[l / 4] + (l % 4 * 2 + j) * 2;
            }
    }
    counts.ldmatrix++;
}
template <int X, bool Trans> void ldmatrix(uint32_t *r, const void *row, where at)
{
    row_pointers<X> rows;
    collective("ldmatrix", ~0u, &row, &rows, ldmatrix_run<X, Trans>, at);
    for (int m = 0; m < X; m++) { /* read by this lane, where the sanitizers see it */
        uint16_t e[2];
        memcpy(&e[0], rows.p[m][0], 2);
        memcpy(&e[1], rows.p[m][1], 2);
        r[m] = e[0] | uint32_t(e[1]) << 16;
    }
}

/* ---- mma.sync: D (M×8) += A (M×K, rows) · B (K×8, columns). g = lane / 4, t = lane % 4; a register holds P elements
 *   A, register r: row g + 8·(r mod M/8), k = P·t + 4P·(r / (M/8)) …
 *   B, register r: column g, k = P·t + 4P·r …
 *   D, value i: row g + 8·(i / 2), column 2t + i mod 2 */

template <class T, class Acc, int M, int K> struct mma_arg {
    static constexpr int P = 4 / int(sizeof(T)), na = M / 8 * K / (4 * P), nb = K / (4 * P), nd = M / 8 * 2;
    const uint32_t *a, *b;
    Acc *d;
};
template <class T, class Acc, int M, int K> void mma_run(const lanes &w)
{
    using arg = mma_arg<T, Acc, M, K>;
    constexpr int P = arg::P;
    Acc a[M][K], b[K][8], d[M][8] = {};
    for (int l = 0; l < 32; l++) {
        const arg &f = *static_cast<const arg *>(w.arg(l, l));
        int g = l / 4, t = l % 4;
        T e[P];
        for (int r = 0; r < arg::na; r++) {
            memcpy(static_cast<void *>(e), &f.a[r], 4);
            for (int i = 0; i < P; i++) a[g + 8 * (r % (M / 8))][P * t + 4 * P * (r / (M / 8)) + i] = Acc(float(e[i]));
        }
        for (int r = 0; r < arg::nb; r++) {
            memcpy(static_cast<void *>(e), &f.b[r], 4);
            for (int i = 0; i < P; i++) b[P * t + 4 * P * r + i][g] = Acc(float(e[i]));
        }
    }
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; l++) {
        const arg &f = *static_cast<const arg *>(w.in[l]);
        for (int i = 0; i < arg::nd; i++) f.d[i] += d[l / 4 + 8 * (i / 2)][l % 4 * 2 + i % 2];
    }
    counts.mma++;
}
template <class T, class Acc, int M, int K> void mma(Acc *d, const uint32_t *a, const uint32_t *b, where at)
{
    mma_arg<T, Acc, M, K> arg{a, b, d};
    collective("mma.sync", ~0u, &arg, nullptr, mma_run<T, Acc, M, K>, at);
}

} // namespace emu
#endif
