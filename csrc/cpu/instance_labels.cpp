// Instance labels: one row of label logits per training sample.

#include <algorithm>
#include <utility>
#include <vector>

#include "labels.h"

namespace fastmeta::cpu {

namespace {

// Loss, v and entropy of batch row i below the label row l. e holds the exponentials of z, whose maximum and sum are q;
// el receives those of l. write_label(k, x) gets l vector by vector.
template <class A, class Write>
FASTMETA_INLINE void write_loss(const RowResults<A>& out, int64_t i, A w, const A* z, A* e, MaxSum<A> q, const A* l,
                                A l_max, A* el, Write write_label) {
  Sum<A> sum, own, other;
  sweep<A>(
      out.C,
      FASTMETA_BODY(k) {
        const Vec<A> x = load(l + k), d = x - l_max;
        write_label(k, x);
        const Vec<A> y = below_end<A>(exp<A>(d), k, out.C);
        store(el + k, y);
        sum += y;
        own += y * -d;
        other += y * (q.max - load(z + k));
      },
      sum, own, other);
  const A s = sum.value(), f = w / q.sum, g = w / s;
  out.set_loss(i, loss_from(other.value() / s, A(1), std::log(q.sum)), std::log(s) + own.value() / s);
  const RowWriter<A> v(out.v, i, out.C, e);
  sweep<A>(out.C, FASTMETA_BODY(k) { v(k, load(e + k) * f - load(el + k) * g); });
  v.finish();
}

template <class A>
FASTMETA_CLONES void loss_rows(const InstanceLossArgs& a, int64_t begin, int64_t end) {
  const auto out = RowResults<A>::of(a);
  Scratch<A> rows(4, a.C);
  A *z = rows[0], *l = rows[1], *e = rows[2], *el = rows[3];
  for (int64_t i = begin; i < end; ++i) {
    const A w = weight_of<A>(a.weight, i);
    RowLoader<A> z_in(a.logits, i, a.C, z), l_in(a.label_logits, a.index.data[i * a.index.stride], a.C, l);
    load_rows<A>(a.C, z_in, l_in);
    const Scan<A> scan = z_in.result(), label = l_in.result();
    if (scan.finite && label.finite && is_finite(w)) {
      const MaxSum<A> q{scan.max, exp_row(z, scan.max, a.C, e)};
      write_loss(out, i, w, z, e, q, l, label.max, el, [](int64_t, Vec<A>) {});
    } else {
      out.skip(i, z);
    }
  }
}

// Memory that is asked for ahead of its turn, element by element while there is something to compute. Label rows are
// gathered, and a stream of rows ends with each page, so the hardware alone comes late: 4096 rows of 1000 then took 1.4
// times as long.
struct Ahead {
  struct Row {
    const char* data;
    int64_t size;

    FASTMETA_INLINE Row(const void* data, int64_t row_stride, DType dtype, int64_t i)
        : data(static_cast<const char*>(data) + i * row_stride * size_of(dtype)), size(size_of(dtype)) {}
  };
  Row z, u, l, v;  // v to write

  FASTMETA_INLINE void fetch(int64_t k) const {
    __builtin_prefetch(z.data + k * z.size);
    __builtin_prefetch(u.data + k * u.size);
    __builtin_prefetch(l.data + k * l.size);
    __builtin_prefetch(v.data + k * v.size, 1);
  }
};

// The step of one label row, and of the batch rows that point at it.
template <class A>
class LabelStep {
 public:
  FASTMETA_INLINE explicit LabelStep(const InstanceLabelStepArgs& a)
      : a_(a),
        from_(a.functional ? a.rows_in : ConstMatrix{a.table.data, a.table.row_stride, a.table.dtype}),
        to_(a.functional ? a.rows_out : a.table),
        out_(RowResults<A>::of(a)),
        step_(static_cast<A>(step_size(scalar_value(a.scale), scalar_value(a.label_lr)))),
        rounding_step_(static_cast<uint64_t>(a.rounding.step.host)),
        scratch_(7, a.C),
        z_(scratch_[0]),
        u_(scratch_[1]),
        l_(scratch_[2]),
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
      const auto gradient = FASTMETA_BODY(k) { return load(el_ + k) * f * (load(u_ + k) - pu); };
      if (count == 1)
        scan = step_along(index, gradient);
      else if (!moved)
        sweep<A>(C, FASTMETA_BODY(k) { store(grad_ + k, gradient(k)); });
      else
        sweep<A>(C, FASTMETA_BODY(k) { store(grad_ + k, load(grad_ + k) + gradient(k)); });
      moved = true;
    }
    if (!moved) return skip(occurrences, count);
    if (count > 1) scan = step_along(index, FASTMETA_BODY(k) { return load(grad_ + k); });
    if (!scan.finite) return skip(occurrences, count);

    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = occurrences[j], to_row = a_.functional ? i : row;
      if (count > 1) {  // the logits of a single row are still in scratch
        if (!load_operands(i, row)) {
          if (a_.functional) store_row(new_, C, to_, to_row);
          out_.skip(i, z_);
          continue;
        }
        q_.sum = exp_row(z_, q_.max, C, ez_);
      }
      const RowWriter<A> label(to_, to_row, C, new_);
      write_loss(out_, i, weight_of<A>(a_.weight, i), z_, ez_, q_, new_, scan.max, el_, label);
      label.finish();
    }
  }

 private:
  FASTMETA_INLINE int64_t label_row(int64_t i) const { return a_.functional ? i : a_.index.data[i * a_.index.stride]; }

  // z, u and l of a batch row into scratch; false for a row to be skipped
  FASTMETA_INLINE bool load_operands(int64_t i, int64_t row) {
    RowLoader<A> z(a_.logits, i, a_.C, z_), u(a_.u, i, a_.C, u_), l(from_, row, a_.C, l_);
    load_rows<A>(a_.C, z, u, l);
    old_ = l.result();
    q_.max = z.result().max;
    return z.result().finite && u.result().finite && is_finite(weight_of<A>(a_.weight, i));
  }

  // The exponentials of z and l and their sums; sets the alignment <q - p, u> and returns <p, u>
  FASTMETA_INLINE A softmaxes(int64_t i, int64_t next) {
    const int64_t C = a_.C;
    const Ahead ahead{{a_.logits.data, a_.logits.row_stride, a_.logits.dtype, next},
                      {a_.u.data, a_.u.row_stride, a_.u.dtype, next},
                      {from_.data, from_.row_stride, from_.dtype, label_row(next)},
                      {a_.v.data, a_.v.row_stride, a_.v.dtype, i}};
    Sum<A> z_sum, l_sum, zu, lu;
    sweep<A>(
        C,
        FASTMETA_BODY(k) {
          ahead.fetch(k);
          const Vec<A> u = load(u_ + k);
          const Vec<A> y = below_end<A>(exp<A>(load(z_ + k) - q_.max), k, C);
          const Vec<A> x = below_end<A>(exp<A>(load(l_ + k) - old_.max), k, C);
          store(ez_ + k, y);
          store(el_ + k, x);
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
    constexpr int64_t kLanes = Simd<A>::kLanes;
    Scanner<A> scan(-static_cast<A>(INFINITY));
    int64_t k = 0;
    for (; k + kLanes <= C; k += kLanes) {
      store(new_ + k, load(l_ + k) - step_ * gradient(k));
      scan(new_ + k);
    }
    if (k < C) {
      store(new_ + k, load(l_ + k) - step_ * gradient(k));
      pad_row(new_, C);
      scan(new_ + k);
    }
    if (size_of(to_.dtype) == sizeof(A)) return scan.result();
    if constexpr (sizeof(A) == 4)
      if (to_.dtype == DType::kBFloat16 && a_.rounding.stochastic)
        round_row(new_, C, a_.rounding.seed, rounding_step_, static_cast<uint64_t>(index));
    store_row(new_, C, {grad_, C, to_.dtype}, 0);
    return load_row({grad_, C, to_.dtype}, 0, C, new_);
  }

  void skip(const int64_t* occurrences, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      if (a_.functional) store_row(l_, a_.C, to_, occurrences[k]);
      out_.skip(occurrences[k], z_);
    }
  }

  const InstanceLabelStepArgs& a_;
  const ConstMatrix from_;
  const Matrix to_;
  const RowResults<A> out_;
  const A step_;
  const uint64_t rounding_step_;
  Scratch<A> scratch_;
  A *z_, *u_, *l_, *ez_, *el_, *new_, *grad_;
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

template <class A>
FASTMETA_CLONES void step_groups(const Groups& groups, int64_t begin, int64_t end) {
  LabelStep<A> step(groups.args);
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
