// One update of AdamW (Loshchilov and Hutter, 2019), on one number or on vectors: the CPU's loop and the GPU's.
#pragma once
#include <cmath>

#include "primal_dual/primal_dual.h"

namespace gwf::GWF_ISA {

template <class T> struct AdamStep {
    T keep1, keep2, add1, add2, step, root, epsilon, decay;

    // power1, power2: beta^t after this update
    GWF_INLINE AdamStep(const AdamSettings& adam, double rate, double power1, double power2)
        : keep1(T(adam.beta1)),
          keep2(T(adam.beta2)),
          add1(T(1 - adam.beta1)),
          add2(T(1 - adam.beta2)),
          step(T(rate / (1 - power1))),
          root(T(1 / std::sqrt(1 - power2))),
          epsilon(T(adam.epsilon)),
          decay(T(1 - rate * adam.weight_decay)) {}

    // g: the gradient; m, v: its moments; p: the parameter
    template <class V> GWF_INLINE void update(V g, V& m, V& v, V& p) const {
        m = m * keep1 + g * add1;
        v = v * keep2 + g * g * add2;
        p = p * decay - step * (m / (square_root(v) * root + epsilon));
    }
};

// The factor on a gradient of this norm, as torch.nn.utils.clip_grad_norm_ has it.
GWF_INLINE double clip_factor(double clip, double norm) {
    const double factor = clip / (norm + 1e-6);
    return factor < 1 ? factor : 1.0;
}

}  // namespace gwf::GWF_ISA
