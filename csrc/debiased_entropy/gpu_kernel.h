// SPDX-License-Identifier: Apache-2.0
// The body of debiased_entropy on a GPU; see common/grid/body.h for what it is written in.
//
// At a step's size (8 tasks x 16 rows, some 6,000 logits) the time is latency: 3 M numbers moved,
// and a launch costs more than that. So one launch does all tasks. A block takes a task, its warps
// the rows, their lanes the classes; every sum runs in an order that sizes alone fix, in float64,
// whose rate does not matter here where a long row's roundings do. A row is read from memory once
// and then from the cache. A block for each row would need a second launch, or all blocks to meet,
// between the rows' numbers and the gradient.
//
// Offsets lie in device memory, where checking them on the host would wait for the GPU. Ones that
// are out of range are cut to what is there; the loss and the gradient of a task with such ones, or
// with rows or elements of another task's, become NaN.
#pragma once

#include "debiased_entropy/arguments.h"
#include "debiased_entropy/gpu_rows.h"

namespace mdft::MDFT_TARGET {

template <typename acc_t>
struct EntropyKernel {
  using Args = EntropyArgs;
  static constexpr int kThreads = 512;  // 16 warps: a task's 16 rows at once
  static constexpr int kMinBlocks = 1;
  static constexpr acc_t kNoLogit = -std::numeric_limits<acc_t>::infinity();
  static constexpr acc_t kLowest = std::numeric_limits<acc_t>::lowest();
  using Shared = Verdict<kThreads / kWarp>;

  static MDFT_DEVICE void run(const Args& a, const Block<kThreads>& block, Shared& alone) {
    const Part rows = part(a.task_rows, block.index, a.R);
    block.phase([&](int warp) {
      alone.of_warp[warp] = owns_alone(a, block, warp, block.index);
      for (int64_t r = rows.begin + warp; r < rows.end; r += block.kWarps) make_numbers(a, r);
    });
    block.phase([&](int warp) {
      if (warp == 0) reduce_task(a, block.index, rows, alone.sound());
    });
    block.each_warp([&](int warp) {
      const bool sound = alone.sound();
      for (int64_t r = rows.begin + warp; r < rows.end; r += block.kWarps) {
        write_gradient(a, r, sound);
      }
    });
  }

  // -inf becomes the lowest finite number: times a probability of 0 it is 0, not NaN.
  static MDFT_DEVICE acc_t above_infinity(acc_t x) { return x < kLowest ? kLowest : x; }

  // log q_c = z_c - shift - log_sum, subtracted in two steps: shift may be large, and what remains
  // of the first difference is exact near it.
  static MDFT_DEVICE acc_t log_softmax(acc_t z, double shift, double log_sum) {
    return (z - static_cast<acc_t>(shift)) - static_cast<acc_t>(log_sum);
  }

  static MDFT_DEVICE LaneRow<acc_t> logits_of(const Args& a, int64_t r) {
    return {a.logits, a.logits_dtype, part(a.row_offsets, r, a.M)};
  }
  static MDFT_DEVICE LaneRow<acc_t> teacher_of(const Args& a, int64_t r) {
    return {a.teacher, a.teacher_dtype, part(a.row_offsets, r, a.M)};
  }

  // p of class i: given, or the softmax of the teacher's logits.
  static MDFT_DEVICE acc_t probability(const Args& a, const LaneRow<acc_t>& t, int64_t i,
                                       double shift, double log_sum) {
    if (a.teacher_entropy != nullptr) return t.read(i, 0);
    return exponential(log_softmax(t.read(i, kNoLogit), shift, log_sum));
  }

  // shift, log_sum and entropy of softmax(row): H = log sum - sum e^y y / sum, y = z - shift.
  static MDFT_DEVICE void softmax_numbers(const LaneRow<acc_t>& row, double* shift, double* log_sum,
                                          double* entropy) {
    Lanes<acc_t> top;
    Lanes<double> total, weighted;  // a row may be a vocabulary: 4,000 additions in a lane
    each_lane([&](int lane) {
      top[lane] = kNoLogit;
      for (int64_t i = lane; i < row.size(); i += kWarp) {
        const acc_t z = row.read(i, kNoLogit);
        top[lane] = top[lane] < z ? z : top[lane];
      }
    });
    const acc_t most = warp_max(top);
    each_lane([&](int lane) {
      total[lane] = weighted[lane] = 0;
      for (int64_t i = lane; i < row.size(); i += kWarp) {
        const acc_t y = row.read(i, kNoLogit) - most;
        const acc_t e = exponential(y);
        total[lane] += e;
        weighted[lane] = fused(double{e}, double{above_infinity(y)}, weighted[lane]);
      }
    });
    const double sum = warp_sum(total);
    *shift = most;
    *log_sum = log(sum);
    *entropy = *log_sum - warp_sum(weighted) / sum;
  }

  static MDFT_DEVICE void make_numbers(const Args& a, int64_t r) {
    const LaneRow<acc_t> z = logits_of(a, r);
    const LaneRow<acc_t> t = teacher_of(a, r);
    RowNumbers n{};
    softmax_numbers(z, &n.shift, &n.log_sum, &n.entropy);
    if (a.teacher_entropy == nullptr) {
      softmax_numbers(t, &n.teacher_shift, &n.teacher_log_sum, &n.teacher_entropy);
    } else {
      n.teacher_entropy = static_cast<const acc_t*>(a.teacher_entropy)[r];
    }
    Lanes<double> crossed;  // sum of p log q; a class with p = 0 adds nothing
    each_lane([&](int lane) {
      crossed[lane] = 0;
      for (int64_t i = lane; i < z.size(); i += kWarp) {
        const acc_t p = probability(a, t, i, n.teacher_shift, n.teacher_log_sum);
        const acc_t log_q = log_softmax(z.read(i, 0), n.shift, n.log_sum);
        crossed[lane] = fused(double{p}, p == 0 ? 0.0 : double{log_q}, crossed[lane]);
      }
    });
    n.cross_entropy = -warp_sum(crossed);
    each_lane([&](int lane) {
      if (lane == 0) a.numbers[r] = n;
    });
  }

  // Filter, weight and loss of one task (equations 4 to 6), a row a lane.
  static MDFT_DEVICE void reduce_task(const Args& a, int64_t task, const Part& rows, bool sound) {
    auto* entropy = static_cast<acc_t*>(a.entropy);
    auto* weight = static_cast<acc_t*>(a.weight);
    Lanes<double> count, weights, total;
    each_lane([&](int lane) {
      count[lane] = weights[lane] = 0;
      total[lane] = sound ? 0 : kNaN<double>;
      for (int64_t r = rows.begin + lane; r < rows.end; r += kWarp) {
        RowNumbers& n = a.numbers[r];
        const LaneRow<acc_t> z = logits_of(a, r);
        const auto H0 = static_cast<acc_t>(a.mu * log(static_cast<double>(z.size())));
        const auto H = static_cast<acc_t>(a.entropy_of_meta ? n.entropy : n.teacher_entropy);
        const bool keep = !a.filter || !(H >= H0);  // (4); a NaN is kept, and its weight is NaN
        const bool one = !a.reweight && (!a.filter || H < H0);
        n.scale = !keep ? 0 : one ? 1 : exponential(H0 - H);  // (5)
        entropy[r] = H;
        a.kept[r] = keep;
        count[lane] += keep;
        weights[lane] += n.scale;
      }
    });
    const double kept = warp_sum(count);
    const double all_weights = warp_sum(weights);
    const double mean = a.normalize && kept > 0 ? all_weights / kept : 1;
    const double divisor = a.divide_by ? static_cast<const acc_t*>(a.divide_by)[task] : kept;
    each_lane([&](int lane) {
      for (int64_t r = rows.begin + lane; r < rows.end; r += kWarp) {
        RowNumbers& n = a.numbers[r];
        weight[r] = a.kept[r] ? static_cast<acc_t>(n.scale / mean) : 0;  // the mean may be NaN
        if (!a.kept[r]) continue;  // masked, not multiplied: a removed row may hold anything
        n.scale = n.scale / mean / divisor;
        total[lane] += n.scale * (a.alpha * n.cross_entropy + (a.use_entropy ? n.entropy : 0));
      }
    });
    const double loss = warp_sum(total);
    each_lane([&](int lane) {
      if (lane == 0) static_cast<acc_t*>(a.loss)[task] = static_cast<acc_t>(loss);
    });
  }

  static MDFT_DEVICE void write_gradient(const Args& a, int64_t r, bool sound) {
    branch<acc_t>(a.logits_dtype,
                  [&](auto type) { write_gradient_as<type_of<decltype(type)>>(a, r, sound); });
  }

  template <typename scalar_t>
  static MDFT_DEVICE void write_gradient_as(const Args& a, int64_t r, bool sound) {
    const LaneRow<acc_t> z = logits_of(a, r);
    const LaneRow<acc_t> t = teacher_of(a, r);
    const RowNumbers n = a.numbers[r];
    auto* grad = static_cast<scalar_t*>(a.grad) + z.part.begin;
    const auto alpha = static_cast<acc_t>(n.scale * a.alpha);
    const auto entropy_scale = static_cast<acc_t>(a.use_entropy ? -n.scale : 0.0);
    each_lane([&](int lane) {
      for (int64_t i = lane; i < z.size(); i += kWarp) {
        // A removed row: exactly 0, also where the logits are not finite.
        acc_t g = sound ? 0 : kNaN<acc_t>;
        if (sound && n.scale != 0) {
          const acc_t log_q = log_softmax(z.read(i, kNoLogit), n.shift, n.log_sum);
          const acc_t q = exponential(log_q);
          const acc_t p = probability(a, t, i, n.teacher_shift, n.teacher_log_sum);
          const acc_t spread = q * (above_infinity(log_q) + static_cast<acc_t>(n.entropy));
          g = fused(alpha, q - p, entropy_scale * spread);
        }
        narrow(g, grad + i);
      }
    });
  }
};

}  // namespace mdft::MDFT_TARGET
