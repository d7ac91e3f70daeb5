// The near field for one instruction set: a target at a time, lanes over its neighbours, in double.
#pragma once
#include <algorithm>

#include "near/near_field.h"
#include "simd/math.h"
#include "team.h"

namespace gwf::GWF_ISA {

#include "pairwise/profiles_generated.h"

constexpr int components(int order, int dim) { return order == 0 ? 1 : order == 1 ? dim : dim * (dim + 1) / 2; }

// Derivatives in q of one term, phi(q) - phi(Q(q)).
template <class Profile, int Order> struct NearTerm {
    using V = vec<double>;
    double coefficient, unit, radius, inverse_square;
    V parameter;
    int degree;
    double binomials[32];

    NearTerm(const Term& term, const NearFieldCall& call)
        : coefficient(term.coefficient),
          unit(Profile::unit / (term.bandwidth * term.bandwidth)),
          radius(call.radius),
          inverse_square(1 / (call.radius * call.radius)),
          parameter(splat(term.parameter)),
          degree(std::min(call.degree, 31)) {
        binomials[0] = 1;
        for (int k = 1; k <= degree; k++) binomials[k] = -binomials[k - 1] * (1.5 - k) / k;  // of sqrt(1 - u)
    }

    GWF_INLINE void operator()(V q, V* f) const {
        Profile::template jet<Order>(unit * q, parameter, NoShift{}, f);
        if (degree > 0) subtract_smooth(q, f);
        double scale = coefficient;
        for (int k = 0; k <= Order; k++, scale *= unit) f[k] *= scale;
    }

  private:
    GWF_INLINE void subtract_smooth(V q, V* f) const {
        const V u = 1.0 - q * inverse_square;
        V s = splat(binomials[degree]), s1{}, s2{};  // sqrt(1 - u), and its derivatives in u
        for (int k = degree - 1; k >= 0; k--) {
            if constexpr (Order > 1) s2 = s2 * u + 2.0 * s1;
            if constexpr (Order > 0) s1 = s1 * u + s;
            s = s * u + binomials[k];
        }
        V g[Order + 1];
        Profile::template jet<Order>(unit * (radius * radius) * s * s, parameter, NoShift{}, g);
        f[0] -= g[0];
        const V slope = -2.0 * s * s1;  // dQ/dq
        if constexpr (Order > 0) f[1] -= g[1] * slope;
        if constexpr (Order > 1)
            f[2] -= g[2] * slope * slope + g[1] * (2.0 * inverse_square / unit) * (s1 * s1 + s * s2);
    }
};

template <class Profile, int D, int Order> struct NearTarget {
    using V = vec<double>;
    static constexpr int count = components(Order, D);
    const NearFieldCall& call;
    NearTerm<Profile, Order> term;
    V total[count];

    GWF_INLINE void add(const double* x, int64_t first, int64_t last) {
        for (int64_t j = first; j < last; j += lanes<double>) {
            V d[D], w = load(call.weights + j), q{};
            for (int a = 0; a < D; a++) d[a] = x[a] - load(call.y + a * call.stride + j), q += d[a] * d[a];
            const V lane = double(j) + lane_numbers();
            w = lane < double(last) && q < call.radius * call.radius ? w : V{};
            q = q < call.radius * call.radius ? q : splat(call.radius * call.radius);
            V f[Order + 1];
            term(q, f);
            if constexpr (Order == 0) total[0] += w * f[0];
            if constexpr (Order == 1) {
                const V slope = 2.0 * w * f[1];
                for (int a = 0; a < D; a++) total[a] += slope * d[a];
            }
            if constexpr (Order == 2) {
                const V slope = 2.0 * w * f[1], curvature = 4.0 * w * f[2];
                for (int a = 0, k = 0; a < D; a++)
                    for (int b = a; b < D; b++, k++) total[k] += curvature * d[a] * d[b] + (a == b ? slope : V{});
            }
        }
    }

    static GWF_INLINE V lane_numbers() {
        V v;
        for (int k = 0; k < lanes<double>; k++) v[k] = k;
        return v;
    }
};

template <class Profile, int D, int Order> void near_term(const NearFieldCall& call, const Term& term) {
    constexpr int count = components(Order, D);
    const int64_t *grid = call.grid, rows = grid[1] * grid[2];
    auto one = [&](int64_t i) {
        NearTarget<Profile, D, Order> target{call, {term, call}, {}};
        const int64_t position[3] = {call.cell[i] / rows, call.cell[i] / grid[2] % grid[1], call.cell[i] % grid[2]};
        int64_t low[3], high[3];
        for (int a = 0; a < 3; a++) {
            low[a] = std::max<int64_t>(0, position[a] - call.reach);
            high[a] = std::min(grid[a] - 1, position[a] + call.reach);
        }
        int64_t neighbours = 0;
        // Cells that follow each other in the last dimension are one run of sources.
        for (int64_t a = low[0]; a <= high[0]; a++)
            for (int64_t b = low[1]; b <= high[1]; b++) {
                const int64_t row = (a * grid[1] + b) * grid[2];
                const int64_t first = call.start[row + low[2]], last = call.start[row + high[2] + 1];
                target.add(call.x + i * D, first, last);
                neighbours += last - first;
            }
        for (int k = 0; k < count; k++) call.out[i * count + k] += horizontal_sum<double>(target.total[k]);
        breathe(30 * double(neighbours) + 100);
    };
    constexpr int64_t together = 256;
    Team::form(call.targets > 512 ? available_threads() : 1, [&](Team& team, int) {
        team.loop(call.targets, together, [&](int64_t first) {
            for (int64_t i = first; i < std::min(call.targets, first + together); i++) one(i);
        });
    });
}

template <class Profile> void near_profile(const NearFieldCall& call, const Term& term) {
    using Run = void (*)(const NearFieldCall&, const Term&);
    static constexpr Run table[3][3] = {
        {near_term<Profile, 1, 0>, near_term<Profile, 1, 1>, near_term<Profile, 1, 2>},
        {near_term<Profile, 2, 0>, near_term<Profile, 2, 1>, near_term<Profile, 2, 2>},
        {near_term<Profile, 3, 0>, near_term<Profile, 3, 1>, near_term<Profile, 3, 2>},
    };
    table[call.dim - 1][call.order](call, term);
}

inline void near_field(const NearFieldCall& call) {
    for (const Term& term : call.kernel) switch (term.profile) {
#define GWF_NEAR(number, Profile)          \
    case number:                           \
        near_profile<Profile>(call, term); \
        break;
            GWF_FOR_EACH_PROFILE(GWF_NEAR)
#undef GWF_NEAR
        }
}

}  // namespace gwf::GWF_ISA
