// Class labels: one smoothing value per class, p_y = 1 - alpha_y and alpha_y / (C - 1) elsewhere.

#include <vector>

#include "labels.h"

namespace fastmeta::cpu {

namespace {

// Loss, v and entropy of batch row i of class y. Overwrites z.
template <class A>
void write_loss(const RowResults<A>& out, int64_t i, int64_t y, A alpha, A w, A* z, A* e, MaxSum<A> q) {
  const int64_t C = out.C;
  const A below_y = q.max - z[y];
  const A below_others = below_row(q.max, z, C) - below_y;
  out.set_loss(i, class_loss_from(alpha, C, below_y, below_others, std::log(q.sum)), class_entropy(alpha, C));
  const A e_y = e[y];
  centred_row(e, w / q.sum, class_other(alpha, C) * q.sum, C, z);
  z[y] = dlogits(e_y / q.sum, 1 - alpha, A(1), w);
  store_row(z, C, out.v, i);
}

}  // namespace

void class_loss(const ClassLossArgs& a) {
  *a.skipped = 0;
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    const auto out = RowResults<A>::of(a);
    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(2, a.C);
      A *z = rows[0], *e = rows[1];
      int32_t skipped = 0;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t y = a.targets.data[i * a.targets.stride];
        const A alpha = value<A>(a.alpha, y), w = weight_of<A>(a.weight, i);
        load_row(a.logits, i, a.C, z);
        if (!all_finite(z, a.C) || !is_finite(alpha) || !is_finite(w)) {
          out.skip(i, z);
          ++skipped;
          continue;
        }
        write_loss(out, i, y, alpha, w, z, e, softmax_row(z, a.C, e));
      }
      add_skipped(a.skipped, skipped);
    });
  });
}

void class_label_step(const ClassLabelStepArgs& a) {
  *a.skipped = 0;
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    const auto out = RowResults<A>::of(a);
    const A step = static_cast<A>(step_size(scalar_value(a.scale), scalar_value(a.label_lr)));
    A* const term = static_cast<A*>(a.workspace);  // gradient terms, NaN for a skipped row
    A* const moved = term + a.n;                   // the new alpha of each row's class, NaN where it is skipped
    const auto target = [&](int64_t i) { return a.targets.data[i * a.targets.stride]; };

    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(3, a.C);
      A *z = rows[0], *u = rows[1], *e = rows[2];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t y = target(i);
        const A alpha = value<A>(a.alpha_in, y), w = weight_of<A>(a.weight, i);
        load_row(a.logits, i, a.C, z);
        load_row(a.u, i, a.C, u, Padding::kZero);
        term[i] = quiet_nan<A>();
        if (!all_finite(z, a.C) || !all_finite(u, a.C) || !is_finite(alpha) || !is_finite(w)) continue;
        const A sum = softmax_row(z, a.C, e).sum;
        const A others = sum_row(u, a.C) - u[y];
        out.set_alignment(i, dot_row(e, u, a.C) / sum - class_dot(alpha, a.C, u[y], others));
        term[i] = class_grad(a.C, u[y], others, w);
      }
    });

    // The sums per class, serial: n additions in batch order. alpha_out may be alpha_in.
    std::vector<A> grad(a.C, A(0));
    std::vector<char> touched(a.C, 0);
    for (int64_t i = 0; i < a.n; ++i) {
      if (!is_finite(term[i])) continue;
      grad[target(i)] += term[i];
      touched[target(i)] = 1;
    }
    std::vector<char> failed(a.C, 0);
    for (int64_t c = 0; c < a.C; ++c) {
      const A alpha = value<A>(a.alpha_in, c);
      const A next = stepped(alpha, step, grad[c]);
      failed[c] = touched[c] && !is_finite(next);
      static_cast<A*>(a.alpha_out)[c] = touched[c] && !failed[c] ? clamp_unit(next) : alpha;
    }
    for (int64_t i = 0; i < a.n; ++i) {
      const bool skip = !is_finite(term[i]) || failed[target(i)];
      moved[i] = skip ? quiet_nan<A>() : static_cast<const A*>(a.alpha_out)[target(i)];
    }

    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(2, a.C);
      A *z = rows[0], *e = rows[1];
      int32_t skipped = 0;
      for (int64_t i = begin; i < end; ++i) {
        if (!is_finite(moved[i])) {
          out.skip(i, z);
          ++skipped;
          continue;
        }
        load_row(a.logits, i, a.C, z);
        write_loss(out, i, target(i), moved[i], weight_of<A>(a.weight, i), z, e, softmax_row(z, a.C, e));
      }
      add_skipped(a.skipped, skipped);
    });
  });
}

}  // namespace fastmeta::cpu
