// Class labels: one smoothing value per class, p_y = 1 - alpha_y and alpha_y / (C - 1) elsewhere.

#include <vector>

#include "labels.h"

namespace fastmeta::cpu {

namespace {

int64_t target(const IndexVector& targets, int64_t i) { return targets.data[i * targets.stride]; }

// Loss, v and entropy of batch row i of class y. Overwrites z.
template <class A>
FASTMETA_INLINE void write_loss(const RowResults<A>& out, int64_t i, int64_t y, A alpha, A w, A* z, A m, A* e) {
  const int64_t C = out.C;
  const A sum = exp_row(z, m, C, e);
  Sum<A> below;
  sweep<A>(C, FASTMETA_BODY(k) { below += below_end<A>(m - load(z + k), k, C); }, below);
  const A below_y = m - z[y];
  out.set_loss(i, class_loss_from(alpha, C, below_y, below.value() - below_y, std::log(sum)), class_entropy(alpha, C));
  centred_row(e, w / sum, class_other(alpha, C) * sum, C, z);
  z[y] = dlogits(e[y] / sum, 1 - alpha, A(1), w);
  store_row(z, C, out.v, i);
}

template <class A>
FASTMETA_CLONES void loss_rows(const ClassLossArgs& a, int64_t begin, int64_t end) {
  const auto out = RowResults<A>::of(a);
  Scratch<A> rows(2, a.C);
  A *z = rows[0], *e = rows[1];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t y = target(a.targets, i);
    const A alpha = value<A>(a.alpha, y), w = weight_of<A>(a.weight, i);
    const Scan<A> scan = load_row(a.logits, i, a.C, z);
    if (scan.finite && is_finite(alpha) && is_finite(w)) {
      write_loss(out, i, y, alpha, w, z, scan.max, e);
    } else {
      out.skip(i, z);
    }
  }
}

// A step in three parts, over the two halves of its workspace: (1) each row's gradient term, NaN for a skipped row;
// (2) the sums per class, and each row's new alpha, NaN for a skipped row; (3) the losses.
template <class A>
A* terms(const ClassLabelStepArgs& a) {
  return static_cast<A*>(a.workspace);
}
template <class A>
A* new_alphas(const ClassLabelStepArgs& a) {
  return static_cast<A*>(a.workspace) + a.n;
}

template <class A>
FASTMETA_CLONES void term_rows(const ClassLabelStepArgs& a, int64_t begin, int64_t end) {
  Scratch<A> rows(3, a.C);
  A *z = rows[0], *u = rows[1], *e = rows[2];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t y = target(a.targets, i);
    const A alpha = value<A>(a.alpha_in, y), w = weight_of<A>(a.weight, i);
    const Scan<A> scan = load_row(a.logits, i, a.C, z);
    const bool finite = load_row(a.u, i, a.C, u, Padding::kZero).finite && scan.finite;
    terms<A>(a)[i] = quiet_nan<A>();
    if (!finite || !is_finite(alpha) || !is_finite(w)) continue;
    A eu;
    const A sum = exp_dot_row(z, scan.max, u, a.C, e, eu);
    const A others = sum_row(u, a.C) - u[y];
    static_cast<A*>(a.alignment)[i] = eu / sum - class_dot(alpha, a.C, u[y], others);
    terms<A>(a)[i] = class_grad(a.C, u[y], others, w);
  }
}

// Serial: n additions in batch order. alpha_out may be alpha_in.
template <class A>
void move_alpha(const ClassLabelStepArgs& a) {
  const A step = static_cast<A>(step_size(scalar_value(a.scale), scalar_value(a.label_lr)));
  A* const alpha_out = static_cast<A*>(a.alpha_out);
  std::vector<A> grad(a.C, A(0));
  std::vector<char> touched(a.C, 0), failed(a.C, 0);
  for (int64_t i = 0; i < a.n; ++i)
    if (is_finite(terms<A>(a)[i])) {
      grad[target(a.targets, i)] += terms<A>(a)[i];
      touched[target(a.targets, i)] = 1;
    }
  for (int64_t c = 0; c < a.C; ++c) {
    const A alpha = value<A>(a.alpha_in, c);
    const A next = stepped(alpha, step, grad[c]);
    failed[c] = touched[c] && !is_finite(next);
    alpha_out[c] = touched[c] && !failed[c] ? clamp_unit(next) : alpha;
  }
  for (int64_t i = 0; i < a.n; ++i) {
    const int64_t y = target(a.targets, i);
    new_alphas<A>(a)[i] = is_finite(terms<A>(a)[i]) && !failed[y] ? alpha_out[y] : quiet_nan<A>();
  }
}

template <class A>
FASTMETA_CLONES void moved_loss_rows(const ClassLabelStepArgs& a, int64_t begin, int64_t end) {
  const auto out = RowResults<A>::of(a);
  Scratch<A> rows(2, a.C);
  A *z = rows[0], *e = rows[1];
  for (int64_t i = begin; i < end; ++i) {
    const A alpha = new_alphas<A>(a)[i];
    if (is_finite(alpha)) {
      const A m = load_row(a.logits, i, a.C, z).max;
      write_loss(out, i, target(a.targets, i), alpha, weight_of<A>(a.weight, i), z, m, e);
    } else {
      out.skip(i, z);
    }
  }
}

}  // namespace

void class_loss(const ClassLossArgs& a) { FASTMETA_OVER_ROWS(loss_rows, a, a.logits.dtype, a.n); }

void class_label_step(const ClassLabelStepArgs& a) {
  FASTMETA_OVER_ROWS(term_rows, a, a.logits.dtype, a.n);
  a.logits.dtype == DType::kFloat64 ? move_alpha<double>(a) : move_alpha<float>(a);
  FASTMETA_OVER_ROWS(moved_loss_rows, a, a.logits.dtype, a.n);
}

}  // namespace fastmeta::cpu
