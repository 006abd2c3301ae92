// Instance labels: one row of label logits per training sample.

#include <algorithm>
#include <utility>
#include <vector>

#include "labels.h"

namespace fastmeta::cpu {

namespace {

// A label row in scratch: l, its exponentials, and their max and sum.
template <class A>
struct LabelRow {
  A *l, *e;
  MaxSum<A> softmax;
  A entropy;

  FASTMETA_INLINE void take_softmax(A max, int64_t C) { softmax = {max, exp_entropy_row(l, max, C, e, entropy)}; }
};

// Loss, v and entropy of batch row i below the label `row`. z and e hold its logits and their exponentials; z is lost.
template <class A>
FASTMETA_INLINE void write_loss(const RowResults<A>& out, int64_t i, A w, A* z, const A* e, MaxSum<A> q,
                                const LabelRow<A>& row) {
  const A f = w / q.sum, g = w / row.softmax.sum;
  Sum<A> below;
  sweep<A>(
      out.C,
      FASTMETA_BODY(k) {
        const Vec<A> p = load(row.e + k);
        below += p * (q.max - load(z + k));
        store(z + k, load(e + k) * f - p * g);
      },
      below);
  out.set_loss(i, loss_from(below.value() / row.softmax.sum, A(1), std::log(q.sum)), row.entropy);
  store_row(z, out.C, out.v, i);
}

template <class A>
FASTMETA_CLONES void loss_rows(const InstanceLossArgs& a, int64_t begin, int64_t end) {
  const auto out = RowResults<A>::of(a);
  Scratch<A> rows(4, a.C);
  A *z = rows[0], *e = rows[1];
  LabelRow<A> label{rows[2], rows[3], {}, 0};
  int32_t skipped = 0;
  for (int64_t i = begin; i < end; ++i) {
    const A w = weight_of<A>(a.weight, i);
    const Scan<A> scan = load_row(a.logits, i, a.C, z);
    const Scan<A> label_scan = load_row(a.label_logits, a.index.data[i * a.index.stride], a.C, label.l);
    if (scan.finite && label_scan.finite && is_finite(w)) {
      label.take_softmax(label_scan.max, a.C);
      write_loss<A>(out, i, w, z, e, {scan.max, exp_row(z, scan.max, a.C, e)}, label);
    } else {
      out.skip(i, z);
      ++skipped;
    }
  }
  add_skipped(a.skipped, skipped);
}

// The step of one label row, and of the batch rows that point at it.
template <class A>
class LabelStep {
 public:
  FASTMETA_INLINE explicit LabelStep(const InstanceLabelStepArgs& a)
      : a_(a),
        from_(a.functional ? a.rows_in : ConstMatrix{a.table.data, a.table.row_stride, a.table.dtype}),
        out_(RowResults<A>::of(a)),
        step_(static_cast<A>(step_size(scalar_value(a.scale), scalar_value(a.label_lr)))),
        scratch_(8, a.C),
        z_(scratch_[0]),
        e_(scratch_[1]),
        u_(scratch_[2]),
        grad_(scratch_[3]),
        old_{scratch_[4], scratch_[5], {}, 0},
        new_{scratch_[6], scratch_[7], {}, 0} {}

  // Batch rows occurrences[0 .. count), in batch order, the first of which owns the label row; returns how many were
  // skipped.
  FASTMETA_INLINE int32_t operator()(const int64_t* occurrences, int64_t count) {
    const int64_t C = a_.C, row = a_.functional ? occurrences[0] : a_.index.data[occurrences[0] * a_.index.stride];
    const Scan<A> scan = load_row(from_, row, C, old_.l);
    if (!scan.finite) return skip(occurrences, count);
    old_.softmax = {scan.max, exp_row(old_.l, scan.max, C, old_.e)};

    bool moved = false;
    for (int64_t k = 0; k < count; ++k) moved |= add_gradient(occurrences[k], !moved);
    if (!moved) return skip(occurrences, count);
    sweep<A>(C, FASTMETA_BODY(k) { store(new_.l + k, load(old_.l + k) - step_ * load(grad_ + k)); });
    const Scan<A> new_scan = round_new();
    if (!new_scan.finite) return skip(occurrences, count);
    new_.take_softmax(new_scan.max, C);
    if (!a_.functional) store_row(new_.l, C, a_.table, row);

    int32_t skipped = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = occurrences[k];
      if (a_.functional) store_row(new_.l, C, a_.rows_out, i);
      if (count > 1) {  // the logits of a single row are still in scratch
        if (!load_batch_row(i)) {
          out_.skip(i, z_);
          ++skipped;
          continue;
        }
        q_.sum = exp_row(z_, q_.max, C, e_);
      }
      write_loss(out_, i, weight_of<A>(a_.weight, i), z_, e_, q_, new_);
    }
    return skipped;
  }

 private:
  // false for a row to be skipped
  FASTMETA_INLINE bool load_batch_row(int64_t i) {
    const Scan<A> z = load_row(a_.logits, i, a_.C, z_), u = load_row(a_.u, i, a_.C, u_);
    q_.max = z.max;
    return z.finite && u.finite && is_finite(weight_of<A>(a_.weight, i));
  }

  // grad = or += w p (u - <p, u>); false for a row to be skipped
  FASTMETA_INLINE bool add_gradient(int64_t i, bool first) {
    if (!load_batch_row(i)) return false;
    A eu;
    q_.sum = exp_dot_row(z_, q_.max, u_, a_.C, e_, eu);
    const A sum = old_.softmax.sum, pu = dot_row(old_.e, u_, a_.C) / sum, f = weight_of<A>(a_.weight, i) / sum;
    out_.set_alignment(i, eu / q_.sum - pu);
    if (first)
      sweep<A>(a_.C, FASTMETA_BODY(k) { store(grad_ + k, load(old_.e + k) * f * (load(u_ + k) - pu)); });
    else
      sweep<A>(
          a_.C, FASTMETA_BODY(k) { store(grad_ + k, load(grad_ + k) + load(old_.e + k) * f * (load(u_ + k) - pu)); });
    return true;
  }

  // The new row through the table's dtype: its loss and v belong to the row as it is stored.
  FASTMETA_INLINE Scan<A> round_new() {
    if (size_of(from_.dtype) == sizeof(A)) {
      pad_row(new_.l, a_.C);
      return scan_row(new_.l, a_.C);
    }
    store_row(new_.l, a_.C, {grad_, a_.C, from_.dtype}, 0);
    return load_row({grad_, a_.C, from_.dtype}, 0, a_.C, new_.l);
  }

  int32_t skip(const int64_t* occurrences, int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      if (a_.functional) store_row(old_.l, a_.C, a_.rows_out, occurrences[k]);
      out_.skip(occurrences[k], z_);
    }
    return static_cast<int32_t>(count);
  }

  const InstanceLabelStepArgs& a_;
  const ConstMatrix from_;
  const RowResults<A> out_;
  const A step_;
  Scratch<A> scratch_;
  A *z_, *e_, *u_, *grad_;
  LabelRow<A> old_, new_;
  MaxSum<A> q_{};
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
  int32_t skipped = 0;
  for (int64_t g = begin; g < end; ++g) {
    const int64_t* rows = groups.args.unique ? &g : &groups.order[groups.start[g]];
    skipped += step(rows, groups.args.unique ? 1 : groups.start[g + 1] - groups.start[g]);
  }
  add_skipped(groups.args.skipped, skipped);
}

}  // namespace

void instance_loss(const InstanceLossArgs& a) {
  *a.skipped = 0;
  FASTMETA_OVER_ROWS(loss_rows, a, a.logits.dtype, a.n);
}

void instance_label_step(const InstanceLabelStepArgs& a) {
  *a.skipped = 0;
  const Groups groups(a);
  FASTMETA_OVER_ROWS(step_groups, groups, a.logits.dtype, groups.count);
}

}  // namespace fastmeta::cpu
