// The inner loop of a parametric JKO step, as the rest of the library sees it: pointers and sizes.
//
// inf_T sup_h  E |x - T u|^2 / (2a) + c [E A(h(w(T u))) - E B(h(z)) + E [log mu - log Q](T u)] + R(T u)
//
// (Fan et al., ICML 2022) over pairs of an input u and an anchor x, which are the same unless T is a generator from
// latent noise; with w the whitening of a Gaussian mu; w, log mu and log Q are there for the Kullback-Leibler
// divergence only. R is what the caller adds: terms without a critic, and densities without a fused form.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlp/mlp.h"

namespace gwf {

// One network and Adam's state, all in PyTorch's layout. Read at the start, written by write_back().
template <class T> struct TrainedArrays {
    std::vector<MlpLayer> layers;
    std::vector<MlpArrays<T>> parameters, first_moments, second_moments;
    bool residual;
    int64_t steps;  // that Adam has done
    double rate;
};

enum class TargetKind {
    whole,    // all samples at once, each iteration
    samples,  // rows drawn with replacement
    normal,   // standard normal
    callback
};
inline constexpr const char* target_kinds[] = {"whole", "samples", "normal", "callback"};  // as Python calls them

// The numbers of a loop, said once: the structs below have them, bindings ask Python for them by these names, and the
// kernel of a CUDA device takes the structs. gwf_fast/flows/engines/fused.py gives them.
#define GWF_ADAM_NUMBERS(NUMBER)                                                   \
    NUMBER(double, beta1)                                                          \
    NUMBER(double, beta2)                                                          \
    NUMBER(double, epsilon)                                                        \
    NUMBER(double, weight_decay) /* decoupled from the gradient (AdamW) */         \
    NUMBER(double, clip)         /* largest norm of a gradient, 0 = no clipping */ \
    NUMBER(double, average)      /* decay of the moving average of the map's parameters, 0 = none */

#define GWF_LOOP_NUMBERS(NUMBER)                                                                                    \
    NUMBER(int64_t, batch)          /* at most the size of the pool; all of it where equal */                       \
    NUMBER(int64_t, target_batch)   /* samples of Gamma an iteration */                                             \
    NUMBER(TargetKind, target_kind) /* where they come from */                                                      \
    NUMBER(int, critic_steps)       /* an iteration */                                                              \
    NUMBER(int, map_steps)                                                                                          \
    NUMBER(double, step_size)       /* a; infinite: no proximity */                                                 \
    NUMBER(double, coefficient)     /* c, in the ascents of the critic */                                           \
    NUMBER(double, map_coefficient) /* c, in the descents of the map: an entropy's volume scales the value alone */ \
    NUMBER(double, penalty)         /* lambda of lambda E (|grad h(e T u + (1 - e) z)| - 1)^2, off the critic's */  \
                                    /* objective; 0 = none. e is uniform, drawn anew for each ascent; of a */       \
                                    /* larger batch the first rows are used. */                                     \
    NUMBER(bool, log_mean)          /* log E e^h(z) in place of E B(h(z)) (Donsker & Varadhan) */                   \
    NUMBER(bool, with_log_mu)       /* whether log mu enters, beside w */                                           \
    NUMBER(double, log_norm)        /* of mu */                                                                     \
    NUMBER(double, map_dropout)     /* rates at which hidden units are dropped */                                   \
    NUMBER(double, critic_dropout)                                                                                  \
    NUMBER(uint64_t, seed) /* of the draws */                                                                       \
    NUMBER(uint32_t, target_stream)                                                                                 \
    NUMBER(uint32_t, penalty_stream) /* and those after it */

#define GWF_DECLARE(type, name) type name;
struct AdamSettings {
    GWF_ADAM_NUMBERS(GWF_DECLARE)
};
struct LoopNumbers {
    GWF_LOOP_NUMBERS(GWF_DECLARE)
    AdamSettings adam;
};
#undef GWF_DECLARE

template <class T> struct Matrix {
    const T* data;  // contiguous
    int64_t rows, columns;
};

// log Q up to a constant, as gwf_fast.potentials tells it: a name that density.h knows, and its parameters. A vector is
// a matrix of one row.
template <class T> struct Density {
    std::string kind;  // "none": no density
    std::vector<Matrix<T>> arrays;
    std::vector<double> numbers;
    bool exists() const { return kind != "none"; }
    // That one of them, which must have so many rows and columns; any number where that is negative.
    const Matrix<T>& array(size_t which, int64_t rows, int64_t columns) const {
        const bool there = which < arrays.size();
        if (!there || (rows >= 0 && arrays[which].rows != rows) || (columns >= 0 && arrays[which].columns != columns))
            throw std::invalid_argument("density: array " + std::to_string(which) + " of the kind " + kind +
                                        (there ? " has another shape" : " is missing"));
        return arrays[which];
    }
    double number(size_t which) const {
        if (which >= numbers.size()) throw std::invalid_argument("density: the kind " + kind + " has more numbers");
        return numbers[which];
    }
};

struct Elementwise {
    Function function;
    double constant;
};

template <class T> struct PrimalDualProblem : LoopNumbers {
    int64_t input_dim, dim;
    const T* inputs;   // [pool_size, input_dim]
    const T* anchors;  // [pool_size, D]; null = the inputs
    int64_t pool_size;
    bool whole_pool;  // all of it each iteration; pool_size == batch
    const T* target;  // [target_size, D]
    int64_t target_size;
    Elementwise of_model, of_target;  // A and B
    const T* mean;                    // of mu, [D]; null = no whitening, no densities
    const T* whitening;               // inverse of the Cholesky factor of mu's covariance, [D, D], lower triangular
    Density<T> density;
    TrainedArrays<T> map, critic;  // the critic without layers = none
    const double* schedule;        // factor on the rates, [iterations]
    int64_t iterations;
    std::function<void(int64_t, T*)> begin;    // (iteration, z [target_batch, D]), called first where it is there
    std::function<double(const T*, T*)> rest;  // R of (y [batch, D]), whose gradient goes to the second array
};

// How far a run came. Losses are those of the last update; the mean is over the map's last updates of all iterations.
struct PrimalDualReport {
    int64_t iterations = 0;
    double map_loss = 0, critic_loss = 0, mean_map_loss = 0;
};

class PrimalDual {
  public:
    virtual ~PrimalDual() = default;
    // Iterations first, ..., first + count - 1; stops early where a loss is not finite.
    virtual PrimalDualReport run(int64_t first, int64_t count, int threads) = 0;
    virtual void write_back() = 0;
};

// Rows drawn with replacement, and standard normals, from counters: the numbers of one (seed, iteration, stream).
struct PrimalDualBackend {
    const char* name;
    std::unique_ptr<PrimalDual> (*make_float)(const PrimalDualProblem<float>&);
    std::unique_ptr<PrimalDual> (*make_double)(const PrimalDualProblem<double>&);
    void (*indices)(uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, int64_t bound, int64_t* out);
    void (*uniforms)(uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, double* out);
    void (*normals_float)(uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, float* out);
    void (*normals_double)(uint64_t seed, uint32_t iteration, uint32_t stream, int64_t count, double* out);
};

#if defined(__x86_64__)
extern const PrimalDualBackend primal_dual_avx512, primal_dual_avx2;
#endif
extern const PrimalDualBackend primal_dual_baseline;

}  // namespace gwf
