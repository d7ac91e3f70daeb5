// All derivatives of all reductions, as one closed family. With
//     E(x, y, a, b) = sum_ij 2**(column_shift_j - row_shift_i) (a_i . b_j) k(x_i, y_j)
// a jet of order m is the (x, a) part of grad D_t1 .. D_tm E for tangents t = (dx, dy, da, db). The backward of a jet
// is a jet of one order more (or of the same order with a tangent replaced), because D^m E is a symmetric form.
//
// With d = x - y, d_o its tangents, A = a.b, A_o and A12 its tangents, t_o = dt/dt_o, and f_o = d^o k / dt^o:
//     grad_x = 2 scale (d c0 + d_1 c1 + d_2 c2),   c0 = A12 f1 + A1 f2 t2 + A2 f2 t1 + A (f3 t1 t2 + f2 t12),
//                                                  c1 = A2 f1 + A f2 t2,   c2 = A1 f1 + A f2 t1
//     grad_a = b (f2 t1 t2 + f1 t12) + db_1 f1 t2 + db_2 f1 t1
#pragma once
#include "pairwise/rows.h"

namespace gwf::GWF_ISA {

inline constexpr int TJ_JET = 24;  // a dozen tiles fit the cache

template <class T> struct JetScratch {
    T *x, *x_norm, *row_shift, *a, *dx[2], *da[2], *gradient_x, *gradient_a;
    T *t, *f[4], *t_tangent[2], *t12, *A, *A_tangent[2], *A12, *c[3];
    static constexpr int tiles = 16;
    static int64_t size(const Problem<T>& p) { return R<T> * (5 * p.D + 4 * p.C + 2 + tiles * TJ_JET) + 32 * 16; }
    JetScratch(Arena<T>& arena, const Problem<T>& p) {
        x = arena.take(p.D * R<T>);
        x_norm = arena.take(R<T>);
        row_shift = arena.take(R<T>);
        a = arena.take(p.C * R<T>);
        for (auto& piece : dx) piece = arena.take(p.D * R<T>);
        for (auto& piece : da) piece = arena.take(p.C * R<T>);
        gradient_x = arena.take(p.D * R<T>);
        gradient_a = arena.take(p.C * R<T>);
        for (T** piece : {&t, &f[0], &f[1], &f[2], &f[3], &t_tangent[0], &t_tangent[1], &t12, &A, &A_tangent[0],
                          &A_tangent[1], &A12, &c[0], &c[1], &c[2]})
            *piece = arena.take(TJ_JET * R<T>);
    }
};

// A tangent at one block of rows and the columns from j0 on; null pieces are zero.
template <class T> struct TileTangent {
    const T *dx, *dy, *da, *db;
};

// The coefficients of a tile, in place of f (see the top); returns nothing for what the order does not need.
template <int Order, class T> void jet_coefficients(const JetScratch<T>& s, int n) {
    for (int64_t at = 0; at < int64_t(n) * R<T>; at += lanes<T>) {
        const vec<T> A = load(s.A + at), f1 = load(s.f[1] + at);
        if constexpr (Order == 0) {
            store(s.c[0] + at, A * f1);
        } else {
            const vec<T> A1 = load(s.A_tangent[0] + at), t1 = load(s.t_tangent[0] + at), f2 = load(s.f[2] + at);
            if constexpr (Order == 1) {
                store(s.c[0] + at, A1 * f1 + A * (f2 * t1));
                store(s.c[1] + at, A * f1);
                store(s.f[2] + at, f1 * t1);  // multiplies b in grad_a; f0 multiplies db
            } else {
                const vec<T> A2 = load(s.A_tangent[1] + at), A12 = load(s.A12 + at), f3 = load(s.f[3] + at);
                const vec<T> t2 = load(s.t_tangent[1] + at), t12 = load(s.t12 + at);
                const vec<T> both = f2 * t1 * t2 + f1 * t12;
                store(s.c[0] + at, A12 * f1 + (A1 * t2 + A2 * t1) * f2 + A * (f3 * t1 * t2 + f2 * t12));
                store(s.c[1] + at, A2 * f1 + A * (f2 * t2));
                store(s.c[2] + at, A1 * f1 + A * (f2 * t1));
                store(s.f[2] + at, both);     // multiplies b
                store(s.f[0] + at, f1 * t2);  // multiplies db_1
                store(s.f[3] + at, f1 * t1);  // multiplies db_2
            }
        }
    }
}

template <class T> void scale_tile(T* t, T factor, int n) {
    for (int64_t at = 0; at < int64_t(n) * R<T>; at += lanes<T>) store(t + at, load(t + at) * factor);
}

template <int Order, class T>
void jet_tile(const Problem<T>& p, int64_t i0, int64_t j0, int n, const JetScratch<T>& s,
              const TileTangent<T>* tangent) {
    const T scale = T(p.kernel->scale);
    const T *y = p.y_rows + j0 * p.D, *b = p.b + j0 * p.C;
    difference_products(s.x, s.x, y, y, p.D, n, s.t);
    evaluate<Order + 1, Shift::near>(*p.kernel, s.t, Shifts<T>{s.row_shift, p.shift + j0}, n, s.f);
    for (int o = 0; o <= Order + 1; o++) drop_self(p, i0, j0, n, s.f[o]);
    channel_products(s.a, b, p.C, n, false, s.A);
    for (int o = 0; o < Order; o++) {
        difference_products(s.x, tangent[o].dx, y, tangent[o].dy, p.D, n, s.t_tangent[o]);
        scale_tile(s.t_tangent[o], 2 * scale, n);
        channel_products(tangent[o].da, b, p.C, n, false, s.A_tangent[o]);
        channel_products(s.a, tangent[o].db, p.C, n, true, s.A_tangent[o]);
    }
    if constexpr (Order == 2) {
        tangent_products(tangent[0].dx, tangent[0].dy, tangent[1].dx, tangent[1].dy, p.D, n, s.t12);
        scale_tile(s.t12, 2 * scale * scale, n);
        channel_products(tangent[0].da, tangent[1].db, p.C, n, false, s.A12);
        channel_products(tangent[1].da, tangent[0].db, p.C, n, true, s.A12);
    }
    jet_coefficients<Order>(s, n);
    sum_differences(s.c[0], s.x, y, int(p.D), p.D, n, s.gradient_x);
    for (int o = 0; o < Order; o++) {
        scale_tile(s.c[o + 1], scale, n);
        sum_differences(s.c[o + 1], tangent[o].dx, tangent[o].dy, int(p.D), p.D, n, s.gradient_x);
    }
    sum_channels(Order == 0 ? s.f[0] : s.f[2], b, p.C, p.C, n, s.gradient_a);
    if (Order >= 1 && tangent[0].db) sum_channels(s.f[0], tangent[0].db, p.C, p.C, n, s.gradient_a);
    if (Order == 2 && tangent[1].db) sum_channels(s.f[3], tangent[1].db, p.C, p.C, n, s.gradient_a);
}

template <class T> void jet_rows(const Problem<T>& p, int64_t i0, JetScratch<T>& s) {
    gather_positions(p, i0, s.x, s.x_norm);
    auto gather = [&](const T* rows, int64_t width, T* tile) -> const T* {
        if (!rows) return nullptr;
        gather_rows<T>(i0, p.N, width, [&](int64_t i, int64_t d) { return rows[i * width + d]; }, tile);
        return tile;
    };
    gather(p.a, p.C, s.a);
    TileTangent<T> tangent[2] = {};
    for (int o = 0; o < p.order; o++)
        tangent[o] = {gather(p.tangents[o].x, p.D, s.dx[o]), nullptr, gather(p.tangents[o].a, p.C, s.da[o]), nullptr};
    for (int l = 0; l < R<T>; l++) {
        const T shift = p.row_shift ? -p.row_shift[std::min(i0 + l, p.N - 1)] * T(log2_e) : T(0);
        s.row_shift[l] = shift > -masked<T> ? -masked<T> : shift;
    }
    std::fill(s.gradient_x, s.gradient_x + p.D * R<T>, T(0));
    std::fill(s.gradient_a, s.gradient_a + p.C * R<T>, T(0));
    for (int64_t j0 = 0; j0 < p.M; j0 += TJ_JET) {
        const int n = int(std::min<int64_t>(TJ_JET, p.M - j0));
        breathe(4 * p.tile_work());
        for (int o = 0; o < p.order; o++) {
            tangent[o].dy = p.tangents[o].y ? p.tangents[o].y + j0 * p.D : nullptr;
            tangent[o].db = p.tangents[o].b ? p.tangents[o].b + j0 * p.C : nullptr;
        }
        switch (p.order) {
            case 0:
                jet_tile<0>(p, i0, j0, n, s, tangent);
                break;
            case 1:
                jet_tile<1>(p, i0, j0, n, s, tangent);
                break;
            case 2:
                jet_tile<2>(p, i0, j0, n, s, tangent);
                break;
        }
    }
    const double factor = p.kernel->coefficient;
    scatter_rows(p, i0, s.gradient_x, p.D, 2 * factor * p.kernel->scale, p.out);
    scatter_rows(p, i0, s.gradient_a, p.C, factor, p.out2);
}

}  // namespace gwf::GWF_ISA
