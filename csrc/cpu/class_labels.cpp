// Class labels: one smoothing value per class, p_y = 1 - alpha_y and alpha_y / (C - 1) elsewhere.

#include <vector>

#include "labels.h"

namespace fastmeta::cpu {

namespace {

int64_t target(const IndexVector& targets, int64_t i) { return targets.data[i * targets.stride]; }

// z, e or u, v, the next z and u
bool far(int64_t C, DType dtype) { return overflow_cache(5, C, dtype); }

// Loss, v and entropy of batch row i of class y, whose logits z have the maximum m. Overwrites e.
template <class V, class A>
FASTMETA_INLINE void write_loss(const RowResults<A>& out, int64_t i, int64_t y, A alpha, A w, const A* z, A m, A* e,
                                const AheadRow& next) {
  const int64_t C = out.C;
  const AheadRow v(out.v, i, far(C, out.v.dtype));
  Sum<V> sums, below;
  sweep<V>(
      C,
      FASTMETA_BODY(k, lanes) {
        next.to_read(k);
        v.to_write(k);
        const Vec<V> d = load<V>(z + k, lanes) - m, x = keep<V>(exp<V>(d), lanes);
        store<V>(e + k, x);
        sums += x;
        below += keep<V>(-d, lanes);
      },
      sums, below);
  const A sum = sums.value(), below_y = m - z[y], f = w / sum, other = class_other(alpha, C) * sum;
  out.set_loss(i, class_loss_from(alpha, C, below_y, below.value() - below_y, std::log(sum)), class_entropy(alpha, C));
  const A v_y = dlogits(e[y] / sum, 1 - alpha, A(1), w);
  sweep<V>(C, FASTMETA_BODY(k, lanes) { store<V>(e + k, (load<V>(e + k) - other) * f); });
  e[y] = v_y;
  store_row(e, C, out.v, i);
}

template <class V>
FASTMETA_INLINE void loss_rows(const ClassLossArgs& a, int64_t begin, int64_t end) {
  using A = scalar_t<V>;
  const auto out = RowResults<A>::of(a);
  Scratch<A> rows(2, a.C);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t y = target(a.targets, i);
    const A alpha = value<A>(a.alpha, y), w = weight_of<A>(a.weight, i);
    const A* z = row_in(a.logits, i, a.C, rows[0]);
    const Scan<A> scan = scan_row<V>(z, a.C);
    if (scan.finite && is_finite(alpha) && is_finite(w)) {
      write_loss<V>(out, i, y, alpha, w, z, scan.max, rows[1],
                    AheadRow(a.logits, i + 1 < end ? i + 1 : i, far(a.C, a.logits.dtype)));
    } else {
      out.skip(i, rows[1]);
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

template <class V>
FASTMETA_INLINE void term_rows(const ClassLabelStepArgs& a, int64_t begin, int64_t end) {
  using A = scalar_t<V>;
  Scratch<A> rows(3, a.C);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t y = target(a.targets, i);
    const A alpha = value<A>(a.alpha_in, y), w = weight_of<A>(a.weight, i);
    const A *z = row_in(a.logits, i, a.C, rows[0]), *u = row_in(a.u, i, a.C, rows[1]);
    RowScan<V> z_scan(z), u_scan(u);
    scan_rows<V>(a.C, z_scan, u_scan);
    const Scan<A> scan = z_scan.result();
    terms<A>(a)[i] = quiet_nan<A>();
    if (!scan.finite || !u_scan.result().finite || !is_finite(alpha) || !is_finite(w)) continue;
    const int64_t next = i + 1 < end ? i + 1 : i;
    const AheadRow next_z(a.logits, next, far(a.C, a.logits.dtype)), next_u(a.u, next, far(a.C, a.logits.dtype));
    Sum<V> sum, eu, of_u;
    sweep<V>(
        a.C,
        FASTMETA_BODY(k, lanes) {
          next_z.to_read(k);
          next_u.to_read(k);
          const Vec<V> x = keep<V>(exp<V>(load<V>(z + k, lanes) - scan.max), lanes), t = load<V>(u + k, lanes);
          sum += x;
          eu += x * t;
          of_u += t;
        },
        sum, eu, of_u);
    const A others = of_u.value() - u[y];
    static_cast<A*>(a.alignment)[i] = eu.value() / sum.value() - class_dot(alpha, a.C, u[y], others);
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

template <class V>
FASTMETA_INLINE void moved_loss_rows(const ClassLabelStepArgs& a, int64_t begin, int64_t end) {
  using A = scalar_t<V>;
  const auto out = RowResults<A>::of(a);
  Scratch<A> rows(2, a.C);
  for (int64_t i = begin; i < end; ++i) {
    const A alpha = new_alphas<A>(a)[i];
    if (is_finite(alpha)) {
      const A* z = row_in(a.logits, i, a.C, rows[0]);
      const A w = weight_of<A>(a.weight, i);
      const AheadRow next(a.logits, i + 1 < end ? i + 1 : i, far(a.C, a.logits.dtype));
      write_loss<V>(out, i, target(a.targets, i), alpha, w, z, scan_row<V>(z, a.C).max, rows[1], next);
    } else {
      out.skip(i, rows[1]);
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
