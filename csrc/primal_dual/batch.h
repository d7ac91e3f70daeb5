// The minibatch of an iteration, in rows padded to whole vectors.
#pragma once
#include "mlp/network.h"
#include "primal_dual/network.h"
#include "primal_dual/primal_dual.h"
#include "random/philox.h"

namespace gwf::GWF_ISA {

inline constexpr uint32_t particle_stream = 0;

template <class T> class Minibatch {
  public:
    Minibatch(const PrimalDualProblem<T>& problem, bool needs_targets)
        : p_(problem),
          needs_targets_(needs_targets),
          input_stride_(row_stride<T>(problem.input_dim)),
          stride_(row_stride<T>(problem.dim)),
          inputs_(problem.batch * input_stride_),
          anchors_(problem.anchors ? problem.batch * stride_ : 0),
          targets_(problem.target_batch * stride_),
          flat_(problem.target_batch * problem.dim),
          indices_(std::max(problem.batch, problem.target_batch)) {}

    void draw(int64_t iteration) {
        const auto i = uint32_t(iteration);
        if (!p_.whole_pool) philox_indices(p_.seed, i, particle_stream, p_.batch, p_.pool_size, indices_.data());
        take(p_.inputs, p_.input_dim, p_.batch, p_.whole_pool, inputs_.data());
        if (p_.anchors) take(p_.anchors, p_.dim, p_.batch, p_.whole_pool, anchors_.data());
        if (p_.begin) p_.begin(iteration, flat_.data());
        if (!needs_targets_) return;
        const bool drawn = p_.target_kind == TargetKind::samples;
        if (drawn) philox_indices(p_.seed, i, p_.target_stream, p_.target_batch, p_.target_size, indices_.data());
        if (p_.target_kind == TargetKind::normal)
            philox_normals(p_.seed, i, p_.target_stream, p_.target_batch * p_.dim, flat_.data());
        const bool given = drawn || p_.target_kind == TargetKind::whole;
        take(given ? p_.target : flat_.data(), p_.dim, p_.target_batch, !drawn, targets_.data());
    }

    const T* input_rows(int64_t first) const { return inputs_.data() + first * input_stride_; }
    const T* anchor_rows(int64_t first) const {
        return p_.anchors ? anchors_.data() + first * stride_ : input_rows(first);
    }
    const T* target_rows(int64_t first) const { return targets_.data() + first * stride_; }

  private:
    // Rows of width dim into rows of its stride: the first ones, or those of the indices.
    void take(const T* from, int64_t dim, int64_t rows, bool first_ones, T* to) const {
        for (int64_t r = 0; r < rows; r++)
            copy_row(from + (first_ones ? r : indices_[size_t(r)]) * dim, dim, to + r * row_stride<T>(dim));
    }

    // a call for each of a few numbers would cost more than they do
    static void copy_row(const T* from, int64_t dim, T* to) {
        if (dim > 16) return void(std::copy_n(from, dim, to));
        for (int64_t d = 0; d < dim; d++) to[d] = from[d];
    }

    const PrimalDualProblem<T>& p_;
    bool needs_targets_;
    int64_t input_stride_, stride_;
    AlignedArray<T> inputs_, anchors_, targets_, flat_;
    std::vector<int64_t> indices_;
};

}  // namespace gwf::GWF_ISA
