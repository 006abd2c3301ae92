// Instance labels: one row of label logits per training sample.

#include <algorithm>
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

  void update(int64_t C) {
    softmax = softmax_row(l, C, e);
    entropy = std::log(softmax.sum) + below_row(e, softmax.max, l, C) / softmax.sum;
  }
};

// Loss, v and entropy of batch row i, whose logits and their exponentials are in z and e, below the label `row`.
// Overwrites z.
template <class A>
void write_loss(const RowResults<A>& out, int64_t i, A w, A* z, const A* e, MaxSum<A> q, const LabelRow<A>& row) {
  const A below = below_row(row.e, q.max, z, out.C) / row.softmax.sum;
  out.set_loss(i, loss_from(below, A(1), std::log(q.sum)), row.entropy);
  difference_row(e, w / q.sum, row.e, w / row.softmax.sum, out.C, z);
  store_row(z, out.C, out.v, i);
}

// Batch rows by label row: group g is order[start[g]] ... order[start[g + 1] - 1], in batch order.
struct Groups {
  std::vector<int64_t> order, start;

  Groups(const IndexVector& index, int64_t n) : order(n) {
    for (int64_t i = 0; i < n; ++i) order[i] = i;
    const auto row = [&](int64_t i) { return index.data[i * index.stride]; };
    std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return row(i) < row(j); });
    for (int64_t k = 0; k < n; ++k)
      if (k == 0 || row(order[k]) != row(order[k - 1])) start.push_back(k);
    start.push_back(n);
  }
};

// The step of one label row and of the batch rows that point at it.
template <class A>
class LabelStep {
 public:
  static constexpr int kRows = 8;

  LabelStep(const InstanceLabelStepArgs& a)
      : a_(a),
        out_(RowResults<A>::of(a)),
        step_(static_cast<A>(step_size(scalar_value(a.scale), scalar_value(a.label_lr)))),
        scratch_(kRows, a.C),
        z_(scratch_[0]),
        e_(scratch_[1]),
        u_(scratch_[2]),
        grad_(scratch_[3]),
        old_{scratch_[4], scratch_[5], {}, 0},
        new_{scratch_[6], scratch_[7], {}, 0} {}

  // Batch rows occurrences[0 .. count); returns how many were skipped.
  int32_t operator()(const int64_t* occurrences, int64_t count) {
    const int64_t owner = occurrences[0], C = a_.C;
    const ConstMatrix from =
        a_.functional ? a_.rows_in : ConstMatrix{a_.table.data, a_.table.row_stride, a_.table.dtype};
    const int64_t row = a_.functional ? owner : a_.index.data[owner * a_.index.stride];
    load_row(from, row, C, old_.l);
    if (!all_finite(old_.l, C)) return skip(occurrences, count, old_.l);
    old_.update(C);

    fill_row(A(0), C, grad_);
    MaxSum<A> q{};
    bool moved = false;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = occurrences[k];
      if (!load(i)) continue;
      moved = true;
      q = softmax_row(z_, C, e_);
      const A pu = dot_row(old_.e, u_, C) / old_.softmax.sum;
      out_.set_alignment(i, dot_row(e_, u_, C) / q.sum - pu);
      add_centred_product_row(old_.e, weight_of<A>(a_.weight, i) / old_.softmax.sum, u_, pu, C, grad_);
    }
    if (!moved) return skip(occurrences, count, old_.l);

    step_row(old_.l, step_, grad_, C, new_.l);
    // through the table's dtype: the new loss and v belong to the row as it is stored
    const Matrix stored{grad_, C, from.dtype};
    store_row(new_.l, C, stored, 0);
    load_row({grad_, C, from.dtype}, 0, C, new_.l);
    if (!all_finite(new_.l, C)) return skip(occurrences, count, old_.l);
    new_.update(C);
    if (!a_.functional) store_row(new_.l, C, a_.table, row);

    int32_t skipped = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = occurrences[k];
      if (a_.functional) store_row(new_.l, C, a_.rows_out, i);
      if (count > 1) {  // a single row's logits are still in scratch
        if (!load(i)) {
          out_.skip(i, z_);
          ++skipped;
          continue;
        }
        q = softmax_row(z_, C, e_);
      }
      write_loss(out_, i, weight_of<A>(a_.weight, i), z_, e_, q, new_);
    }
    return skipped;
  }

 private:
  bool load(int64_t i) {
    load_row(a_.logits, i, a_.C, z_);
    load_row(a_.u, i, a_.C, u_);
    return all_finite(z_, a_.C) && all_finite(u_, a_.C) && is_finite(weight_of<A>(a_.weight, i));
  }

  int32_t skip(const int64_t* occurrences, int64_t count, A* old) {
    for (int64_t k = 0; k < count; ++k) {
      if (a_.functional) store_row(old, a_.C, a_.rows_out, occurrences[k]);
      out_.skip(occurrences[k], z_);
    }
    return static_cast<int32_t>(count);
  }

  const InstanceLabelStepArgs& a_;
  const RowResults<A> out_;
  const A step_;
  Scratch<A> scratch_;
  A *z_, *e_, *u_, *grad_;
  LabelRow<A> old_, new_;
};

}  // namespace

void instance_loss(const InstanceLossArgs& a) {
  *a.skipped = 0;
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    const auto out = RowResults<A>::of(a);
    over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
      Scratch<A> rows(4, a.C);
      A *z = rows[0], *e = rows[1];
      LabelRow<A> label{rows[2], rows[3], {}, 0};
      int32_t skipped = 0;
      for (int64_t i = begin; i < end; ++i) {
        const A w = weight_of<A>(a.weight, i);
        load_row(a.logits, i, a.C, z);
        load_row(a.label_logits, a.index.data[i * a.index.stride], a.C, label.l);
        if (!all_finite(z, a.C) || !all_finite(label.l, a.C) || !is_finite(w)) {
          out.skip(i, z);
          ++skipped;
          continue;
        }
        label.update(a.C);
        const MaxSum<A> q = softmax_row(z, a.C, e);
        write_loss(out, i, w, z, e, q, label);
      }
      add_skipped(a.skipped, skipped);
    });
  });
}

void instance_label_step(const InstanceLabelStepArgs& a) {
  *a.skipped = 0;
  with_acc(a.logits.dtype, [&](auto acc) {
    using A = decltype(acc);
    if (a.unique) {
      over_rows(a.n, a.C, [&](int64_t begin, int64_t end) {
        LabelStep<A> step(a);
        int32_t skipped = 0;
        for (int64_t i = begin; i < end; ++i) skipped += step(&i, 1);
        add_skipped(a.skipped, skipped);
      });
      return;
    }
    // A group is one thread's work, so nothing is raced and sums are taken in batch order.
    const Groups groups(a.index, a.n);
    over_rows(static_cast<int64_t>(groups.start.size()) - 1, a.C, [&](int64_t begin, int64_t end) {
      LabelStep<A> step(a);
      int32_t skipped = 0;
      for (int64_t g = begin; g < end; ++g)
        skipped += step(&groups.order[groups.start[g]], groups.start[g + 1] - groups.start[g]);
      add_skipped(a.skipped, skipped);
    });
  });
}

}  // namespace fastmeta::cpu
