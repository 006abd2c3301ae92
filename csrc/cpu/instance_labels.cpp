// Instance labels: one row of label logits per training sample.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "labels.h"

namespace fastmeta::cpu {

namespace {

// Sums over a row that the loss and the entropy below a label row are made of.
template <class V>
struct LossSums {
  Sum<V> s, own, other;  // of el_k, el_k (l_k - max l), el_k (z_k - max z)

  // The vector at k of el, from those of l - max l and z - max z
  template <class Lanes>
  FASTMETA_INLINE Vec<V> operator()(Vec<V> dl, Vec<V> dz, Lanes lanes) {
    const Vec<V> y = keep<V>(exp<V>(dl), lanes);
    s += y;
    own += y * dl;
    other += y * dz;
    return y;
  }
};

// Loss, v and entropy of batch row i. e holds the exponentials of z, whose maximum and sum are q; el those of l.
// also(k, lanes) goes with the sweep that writes v.
template <class V, class A, class Also>
FASTMETA_INLINE void write_loss(const RowResults<A>& out, int64_t i, A w, A* e, MaxSum<A> q, const A* el,
                                const LossSums<V>& sums, Also also) {
  const A s = sums.s.value(), f = w / q.sum, g = w / s;
  out.set_loss(i, loss_from(-sums.other.value() / s, A(1), std::log(q.sum)), std::log(s) - sums.own.value() / s);
  const RowWriter<V> v(out.v, i, out.C, e);
  sweep<V>(
      out.C, FASTMETA_BODY(k, lanes) {
        also(k, lanes);
        v(k, load<V>(e + k) * f - load<V>(el + k) * g, lanes);
      });
  v.finish();
}

template <class V>
FASTMETA_INLINE void loss_rows(const InstanceLossArgs& a, int64_t begin, int64_t end) {
  using A = scalar_t<V>;
  const auto out = RowResults<A>::of(a);
  const int64_t C = a.C;
  Scratch<A> rows(4, C);
  A *e = rows[2], *el = rows[3];
  const bool far = overflow_cache(7, C, a.logits.dtype);  // z, l, e, el, v, the next z and l
  const auto label_row = [&](int64_t i) __attribute__((always_inline)) { return a.index.data[i * a.index.stride]; };
  for (int64_t i = begin; i < end; ++i) {
    const A w = weight_of<A>(a.weight, i);
    const A *z = row_in(a.logits, i, C, rows[0]), *l = row_in(a.label_logits, label_row(i), C, rows[1]);
    RowScan<V> z_scan(z), l_scan(l);
    scan_rows<V>(C, z_scan, l_scan);
    const Scan<A> scan = z_scan.result(), label = l_scan.result();
    if (!scan.finite || !label.finite || !is_finite(w)) {
      out.skip(i, e);
      continue;
    }
    const int64_t next = i + 1 < end ? i + 1 : i;
    const AheadRow next_z(a.logits, next, far), next_l(a.label_logits, label_row(next), far), v(a.v, i, far);
    Sum<V> z_sum;
    LossSums<V> sums;
    sweep<V>(
        C,
        FASTMETA_BODY(k, lanes) {
          next_z.to_read(k);
          next_l.to_read(k);
          v.to_write(k);
          const Vec<V> dz = load<V>(z + k, lanes) - scan.max;
          const Vec<V> y = keep<V>(exp<V>(dz), lanes);
          store<V>(e + k, y);
          z_sum += y;
          store<V>(el + k, sums(load<V>(l + k, lanes) - label.max, dz, lanes));
        },
        z_sum, sums.s, sums.own, sums.other);
    write_loss<V>(out, i, w, e, MaxSum<A>{scan.max, z_sum.value()}, el, sums, [](int64_t, auto) {});
  }
}

// The step of one label row, and of the batch rows that point at it.
template <class V>
class LabelStep {
  using A = scalar_t<V>;

 public:
  FASTMETA_INLINE explicit LabelStep(const InstanceLabelStepArgs& a)
      : a_(a),
        from_(a.functional ? a.rows_in : ConstMatrix{a.table.data, a.table.row_stride, a.table.dtype}),
        to_(a.functional ? a.rows_out : a.table),
        out_(RowResults<A>::of(a)),
        step_(static_cast<A>(step_size(scalar_value(a.scale), scalar_value(a.label_lr)))),
        rounding_step_(static_cast<uint64_t>(a.rounding.step.host)),
        scratch_(7, a.C),
        ez_(scratch_[3]),
        el_(scratch_[4]),
        new_(scratch_[5]),
        grad_(scratch_[6]) {}

  // Batch rows occurrences[0 .. count), in batch order, the first of which owns the label row. `next` is the batch row
  // that comes after them: its memory is asked for while there is something to compute.
  FASTMETA_INLINE void operator()(const int64_t* occurrences, int64_t count, int64_t next) {
    const int64_t C = a_.C, row = label_row(occurrences[0]);
    const int64_t index = a_.index.data[occurrences[0] * a_.index.stride];
    bool moved = false;
    Scan<A> scan{};
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = occurrences[j];
      const bool good = load_operands(i, row);
      if (!old_.finite) return skip(occurrences, count);
      if (!good) continue;
      const A pu = softmaxes(i, next), f = weight_of<A>(a_.weight, i) / old_sum_;
      const auto gradient = FASTMETA_BODY(k, lanes) { return load<V>(el_ + k) * f * (load<V>(u_ + k, lanes) - pu); };
      if (count == 1)
        scan = step_along(index, gradient);
      else if (!moved)
        sweep<V>(C, FASTMETA_BODY(k, lanes) { store<V>(grad_ + k, gradient(k, lanes)); });
      else
        sweep<V>(C, FASTMETA_BODY(k, lanes) { store<V>(grad_ + k, load<V>(grad_ + k) + gradient(k, lanes)); });
      moved = true;
    }
    if (!moved) return skip(occurrences, count);
    if (count > 1) scan = step_along(index, FASTMETA_BODY(k, lanes) { return load<V>(grad_ + k, lanes); });
    if (!scan.finite) return skip(occurrences, count);

    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = occurrences[j], to_row = a_.functional ? i : row;
      if (count > 1) {  // the exponentials of a single row are still in scratch
        if (!load_logits(i)) {
          if (a_.functional) store_row(new_, C, to_, to_row);
          out_.skip(i, ez_);
          continue;
        }
        q_.sum = exp_row<V>(z_, q_.max, C, ez_);
      }
      LossSums<V> sums;
      sweep<V>(
          C,
          FASTMETA_BODY(k, lanes) {
            store<V>(el_ + k, sums(load<V>(new_ + k, lanes) - scan.max, load<V>(z_ + k, lanes) - q_.max, lanes));
          },
          sums.s, sums.own, sums.other);
      const RowWriter<V> label(to_, to_row, C, new_);
      write_loss<V>(
          out_, i, weight_of<A>(a_.weight, i), ez_, q_, el_, sums,
          FASTMETA_BODY(k, lanes) { label(k, load<V>(new_ + k), lanes); });
      label.finish();
    }
  }

 private:
  FASTMETA_INLINE int64_t label_row(int64_t i) const { return a_.functional ? i : a_.index.data[i * a_.index.stride]; }

  // z and u of a batch row; false for a row to be skipped
  FASTMETA_INLINE bool load_logits(int64_t i) {
    z_ = row_in(a_.logits, i, a_.C, scratch_[0]);
    u_ = row_in(a_.u, i, a_.C, scratch_[1]);
    RowScan<V> z(z_), u(u_);
    scan_rows<V>(a_.C, z, u);
    q_.max = z.result().max;
    return z.result().finite && u.result().finite && is_finite(weight_of<A>(a_.weight, i));
  }
  // The same, and l
  FASTMETA_INLINE bool load_operands(int64_t i, int64_t row) {
    l_ = row_in(from_, row, a_.C, scratch_[2]);
    old_ = scan_row<V>(l_, a_.C);
    return load_logits(i);
  }

  // The exponentials of z and l and their sums; sets the alignment <q - p, u> and returns <p, u>
  FASTMETA_INLINE A softmaxes(int64_t i, int64_t next) {
    const int64_t C = a_.C;
    const bool far = overflow_cache(10, C, a_.logits.dtype);  // z, u, l, ez, el, new, v, the next z, u and l
    const AheadRow next_z(a_.logits, next, far), next_u(a_.u, next, far), next_l(from_, label_row(next), far),
        v(a_.v, i, far);
    Sum<V> z_sum, l_sum, zu, lu;
    sweep<V>(
        C,
        FASTMETA_BODY(k, lanes) {
          next_z.to_read(k);
          next_u.to_read(k);
          next_l.to_read(k);
          v.to_write(k);
          const Vec<V> u = load<V>(u_ + k, lanes);
          const Vec<V> y = keep<V>(exp<V>(load<V>(z_ + k, lanes) - q_.max), lanes);
          const Vec<V> x = keep<V>(exp<V>(load<V>(l_ + k, lanes) - old_.max), lanes);
          store<V>(ez_ + k, y);
          store<V>(el_ + k, x);
          z_sum += y;
          l_sum += x;
          zu += y * u;
          lu += x * u;
        },
        z_sum, l_sum, zu, lu);
    q_.sum = z_sum.value();
    old_sum_ = l_sum.value();
    const A pu = lu.value() / old_sum_;
    out_.set_alignment(i, zu.value() / q_.sum - pu);
    return pu;
  }

  // new = l - step gradient(k), as the table will hold it: its loss and v belong to the row as it is stored
  template <class Gradient>
  FASTMETA_INLINE Scan<A> step_along(int64_t index, Gradient gradient) {
    const int64_t C = a_.C;
    if (size_of(to_.dtype) == sizeof(A)) {
      Scanner<V> scan(-static_cast<A>(INFINITY));
      move_along(gradient, [&](Vec<V> x) __attribute__((always_inline)) { scan(x); });
      return scan.result();
    }
    move_along(gradient, [](Vec<V>) __attribute__((always_inline)) {});
    if constexpr (sizeof(A) == 4)
      if (to_.dtype == DType::kBFloat16 && a_.rounding.stochastic)
        round_row(new_, C, a_.rounding.seed, rounding_step_, static_cast<uint64_t>(index));
    const Matrix stored{grad_, C, to_.dtype};
    store_row(new_, C, stored, 0);
    row_in(ConstMatrix{stored.data, C, stored.dtype}, 0, C, new_);
    return scan_row<V>(new_, C);
  }

  // See with each vector of the new row, whose lanes beyond the row hold its first element
  template <class Gradient, class See>
  FASTMETA_INLINE void move_along(Gradient gradient, See see) {
    sweep<V>(
        a_.C, FASTMETA_BODY(k, lanes) {
          const Vec<V> x = load<V>(l_ + k, lanes) - step_ * gradient(k, lanes);
          store<V>(new_ + k, x);
          if constexpr (std::is_same_v<decltype(lanes), Whole>)
            see(x);
          else
            see(load<V>(new_ + k, lanes, new_[0]));
        });
  }

  void skip(const int64_t* occurrences, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      if (a_.functional) store_row(l_, a_.C, to_, occurrences[k]);
      out_.skip(occurrences[k], ez_);
    }
  }

  const InstanceLabelStepArgs& a_;
  const ConstMatrix from_;
  const Matrix to_;
  const RowResults<A> out_;
  const A step_;
  const uint64_t rounding_step_;
  Scratch<A> scratch_;
  const A *z_ = nullptr, *u_ = nullptr, *l_ = nullptr;
  A *ez_, *el_, *new_, *grad_;
  MaxSum<A> q_{};  // of z
  Scan<A> old_{};  // of l
  A old_sum_ = 0;
};

// Batch rows by label row: group g is order[start[g]] ... order[start[g + 1] - 1], in batch order. One thread works on
// a group, so nothing is raced and sums are taken in batch order. Unique rows are groups of their own and need no
// lists.
struct Groups {
  const InstanceLabelStepArgs& args;
  int64_t C, count;
  std::vector<int64_t> order, start;

  explicit Groups(const InstanceLabelStepArgs& a) : args(a), C(a.C), count(a.n) {
    if (a.unique) return;
    std::vector<std::pair<int64_t, int64_t>> rows(a.n);  // (label row, batch row)
    for (int64_t i = 0; i < a.n; ++i) rows[i] = {a.index.data[i * a.index.stride], i};
    std::sort(rows.begin(), rows.end());
    order.resize(a.n);
    for (int64_t k = 0; k < a.n; ++k) {
      order[k] = rows[k].second;
      if (k == 0 || rows[k].first != rows[k - 1].first) start.push_back(k);
    }
    count = static_cast<int64_t>(start.size());
    start.push_back(a.n);
  }
};

template <class V>
FASTMETA_INLINE void step_groups(const Groups& groups, int64_t begin, int64_t end) {
  LabelStep<V> step(groups.args);
  for (int64_t g = begin; g < end; ++g) {
    const int64_t after = g + 1 < end ? g + 1 : g;
    if (groups.args.unique)
      step(&g, 1, after);
    else
      step(&groups.order[groups.start[g]], groups.start[g + 1] - groups.start[g], groups.order[groups.start[after]]);
  }
}

}  // namespace

void instance_loss(const InstanceLossArgs& a) { FASTMETA_OVER_ROWS(loss_rows, a, a.logits.dtype, a.n); }

void instance_label_step(const InstanceLabelStepArgs& a) {
  const Groups groups(a);
  FASTMETA_OVER_ROWS(step_groups, groups, a.logits.dtype, groups.count);
}

}  // namespace fastmeta::cpu
