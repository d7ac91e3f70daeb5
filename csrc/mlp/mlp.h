// Multilayer perceptrons, as the rest of the library sees them: pointers and sizes.
#pragma once
#include <cstdint>
#include <vector>

namespace gwf {

// What follows a linear layer, elementwise; p is the layer's constant. The last eleven close the objective of a critic
// (they are the conjugates f* of an f-divergence composed with its output activation) and have no second derivative
// here.
enum class Function {
    identity,       // v + p
    leaky,          // v > 0 ? v : p v; p may be learned
    elu,            // v > 0 ? v : p (e^v - 1)
    silu,           // v sigmoid(v)
    softplus,       // log(1 + e^v) + p
    tanh,           // p tanh(v)
    sigmoid,        // p sigmoid(v)
    log_sigmoid,    // p - log(1 + e^-v)
    minus_exp,      // p - e^-v
    square,         // v^2
    expm1,          // e^v - 1
    exp_shifted,    // e^(v - p)
    exp_tamed,      // e^v for v < p, its tangent at p beyond
    parabola,       // t^2 / 4 + t with t = max(v, -2)
    exp_half,       // 2 - 2 e^(-v/2)
    alpha_power,    // ([(p - 1) v + 1]_+^(p / (p - 1)) - 1) / p, p > 1
    alpha_bounded,  // (((1 - p) log(1 + e^-v))^(p / (p - 1)) - 1) / p, p < 1
    entropy_power,  // ([(p - 1) v + 1]_+ / p)^(p / (p - 1)), p > 1
    above,          // max(v, -p) + p
    below,          // min(v, p) - p
    ramp_power,     // [v]_+^p / p, p > 1
};

struct MlpLayer {
    int64_t in, out;
    Function function;
    double constant;
};

template <class T> struct MlpArrays {  // of one layer, in PyTorch's layout
    T* weight;                         // [out, in]
    T* bias;                           // [out]
    T* slope;                          // [1], null where it is not learned
};

// Rows to push through the network, and what is wanted of them; null = not wanted.
template <class T> struct MlpBatch {
    int64_t rows;
    const T* x;          // [N, in]
    const T* cotangent;  // [N, out], null = uniform_cotangent everywhere
    T uniform_cotangent;
    const T* x_tangent;  // [N, in], null = 0
    Function last;       // replaces the function of the last layer
    double last_constant;
    T* out;          // [N, out]
    T* out_tangent;  // [N, out]
    T* dx;           // [N, in]
    double* total;   // sum of all outputs
};

enum class MlpPass {
    forward,   // out
    backward,  // out, dx and the gradients of <cotangent, out> in the parameters
    second     // out_tangent, and the derivatives of dx and of the gradients along (x_tangent, tangents)
};

// All arrays are contiguous. Gradients are summed over the batches.
template <class T> struct MlpCall {
    MlpPass pass;
    bool residual;  // adds x to the output
    std::vector<MlpLayer> layers;
    std::vector<MlpArrays<const T>> parameters;
    std::vector<MlpArrays<const T>> tangents;  // second pass; null members = 0
    std::vector<MlpArrays<T>> gradients;       // empty or null members = not wanted
    std::vector<MlpBatch<T>> batches;
};

// The compiled copies, one an instruction set.
struct MlpBackend {
    const char* name;
    void (*run_float)(const MlpCall<float>&);
    void (*run_double)(const MlpCall<double>&);
};

#if defined(__x86_64__)
extern const MlpBackend mlp_avx512, mlp_avx2;
#endif
extern const MlpBackend mlp_baseline;

}  // namespace gwf
