// Every schema of torch.ops.fastmeta with its equation, and the CPU registration.
//
// z logits (n, C); q = softmax(z); p a label distribution; l label logits; u the logit tangent; w row weights; T one of
// float64, float32, bfloat16, float16; acc(float64) = float64, else float32. `index`, `targets` int64 (n,). `scale` and
// `label_lr` are 0-dim float64 or float32, on the CPU or on the op's device. Skipped rows: kernels.h.
// Results carry no autograd graph; fastmeta/ops/ has the differentiable fronts.

#include "../cpu/parallel.h"
#include "../cpu/soft_cross_entropy.h"
#include "list.h"

namespace fastmeta {

namespace {

template <class Library>
void define_operations(Library& m) {
  // loss_i = sum_k p_ik (lse_i - z_ik) (n,) acc;  lse_i = log sum_k exp(z_ik) (n,) acc
  m.def("soft_cross_entropy(Tensor logits, Tensor probs) -> (Tensor loss, Tensor lse)");

  // grad_logits = grad_i (s_i q_ik - p_ik) (n, C) T, s_i = sum_k p_ik;  grad_probs = grad_i (lse_i - z_ik) (n, C) as
  // probs A gradient that is not needed comes back with 0 rows.
  m.def(
      "soft_cross_entropy_backward(Tensor logits, Tensor probs, Tensor lse, Tensor grad, bool need_logits, "
      "bool need_probs) -> (Tensor grad_logits, Tensor grad_probs)");

  // s_i q_ik (v_ik - <q_i, v_i>) (n, C) as v; s_i = 1 without probs
  m.def("soft_cross_entropy_hvp(Tensor logits, Tensor v, Tensor? probs) -> Tensor");

  // u_ik - <q_i, u_i> (n, C) as u
  m.def("soft_cross_entropy_label_grad(Tensor logits, Tensor u) -> Tensor");

  // p_i = softmax(l_index_i);  loss_i = -sum_k p_ik log q_ik (n,) acc;  v = w_i (q_ik - p_ik) (n, C) T;
  // entropy_i = -sum_k p_ik log p_ik (n,) acc
  m.def(
      "instance_loss(Tensor logits, Tensor label_logits, Tensor index, Tensor? weight) "
      "-> (Tensor loss, Tensor v, Tensor entropy)");

  // l_r -= label_lr * scale * sum_{i: index_i = r} w_i p_r * (u_i - <p_r, u_i>);  loss, v, entropy with the new rows;
  // alignment_i = <q_i - p_i, u_i> with the old ones (n,) acc.  unique: the caller promises that no index repeats.
  // seed, step: new rows are rounded to a bfloat16 table stochastically, with the bits of (seed, step, index_i, k).
  m.def(
      "instance_label_step_(Tensor(a!) label_logits, Tensor index, Tensor logits, Tensor u, Tensor scale, "
      "Tensor label_lr, Tensor? weight, bool unique, int? seed=None, Tensor? step=None) "
      "-> (Tensor loss, Tensor v, Tensor entropy, Tensor alignment)");
  // The same on gathered rows (n, C): equal index means the same sample, whose rows come back equal.
  m.def(
      "instance_label_step(Tensor label_rows, Tensor index, Tensor logits, Tensor u, Tensor scale, Tensor label_lr, "
      "Tensor? weight, bool unique, int? seed=None, Tensor? step=None) "
      "-> (Tensor new_rows, Tensor loss, Tensor v, Tensor entropy, Tensor alignment)");

  // As instance_loss with p_iy = 1 - alpha_y, every other class alpha_y / (C - 1), y = targets_i; alpha (C,) acc
  m.def(
      "class_loss(Tensor logits, Tensor alpha, Tensor targets, Tensor? weight) "
      "-> (Tensor loss, Tensor v, Tensor entropy)");

  // alpha_c = clamp(alpha_c - label_lr * scale * sum_{i: y_i = c} w_i (mean_{k != c} u_ik - u_ic), 0, 1), summed in
  // batch order; classes that the batch does not hold stay as they are.
  m.def(
      "class_label_step_(Tensor(a!) alpha, Tensor targets, Tensor logits, Tensor u, Tensor scale, Tensor label_lr, "
      "Tensor? weight) -> (Tensor loss, Tensor v, Tensor entropy, Tensor alignment)");
  m.def(
      "class_label_step(Tensor alpha, Tensor targets, Tensor logits, Tensor u, Tensor scale, Tensor label_lr, "
      "Tensor? weight) "
      "-> (Tensor new_alpha, Tensor loss, Tensor v, Tensor entropy, Tensor alignment)");

  // <a_i, b_i> (n,) acc
  m.def("row_dot(Tensor a, Tensor b) -> Tensor");

  // (pixel - center_c) * scale_c of images[index], each cropped at a random shift of up to `padding` pixels and flipped
  // as (seed, step, row) draw: images (N, height, width, channels) uint8, center and scale (channels,) acc(dtype), step
  // () int64 on the CPU or the images' device; (n, channels, height, width) dtype, channels last in memory. `reflect`
  // says what stands outside (an argument named `mode` would break functionalisation).
  m.def(
      "load_images(Tensor images, Tensor index, Tensor center, Tensor scale, int padding, bool reflect, bool flip, "
      "int seed, Tensor step, ScalarType dtype) -> Tensor");

  // theta*_k = params_k - lr (gain (grads_k + weight_decay params_k) + carry buffers_k), each as params_k; `buffers` is
  // empty where carry is 0, `lr` 0-dim as above; with lr = 0 theta*_k is params_k whatever grads_k holds
  m.def(
      "lookahead_update(Tensor[] params, Tensor[] grads, Tensor[] buffers, Tensor lr, float gain, float carry, "
      "float weight_decay) -> Tensor[]");
}

std::tuple<Tensor, Tensor, Tensor> soft_cross_entropy_with_grad(const Tensor& logits, const Tensor& probs,
                                                                double weight) {
  const Batch b(logits);
  const ConstMatrix p = b.labels(probs, "probs", "; pass soft labels");
  Tensor loss = b.new_values(b.n), lse = b.new_values(b.n), grad = b.new_rows(b.n, b.acc);
  cpu::soft_cross_entropy_with_grad(
      {b.C, {b.n, b.C, b.logits(), p, loss.mutable_data_ptr(), lse.mutable_data_ptr()}, Batch::output(grad), weight});
  return {loss, lse, grad};
}

struct Cpu {
  static constexpr bool checks_indices = true;
#define X(name, Args) \
  static void name(const Tensor&, const Args& args) { cpu::name(args); }
  FASTMETA_LAUNCHERS(X)
#undef X
};

}  // namespace

STABLE_TORCH_LIBRARY(fastmeta, m) { define_operations(m); }

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CPU, m) {
#define X(name) m.impl(#name, TORCH_BOX(&name<Cpu>));
  FASTMETA_OPS(X)
#undef X
  cpu::parallel_for = [](int64_t n, int64_t grain, cpu::RangeBody body, void* context) {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, body, context));
  };
}

// The same once more, of CPU tensors that nothing differentiates, transforms or traces: fastmeta/ops/guard.py.
STABLE_TORCH_LIBRARY(fastmeta_cpu, m) {
  define_operations(m);

  // As soft_cross_entropy, and weight (s_i q_ik - p_ik) (n, C) acc, the gradient of weight sum_i loss_i for the logits
  m.def(
      "soft_cross_entropy_with_grad(Tensor logits, Tensor probs, float weight) "
      "-> (Tensor loss, Tensor lse, Tensor grad_logits)");
}

STABLE_TORCH_LIBRARY_IMPL(fastmeta_cpu, CPU, m) {
#define X(name) m.impl(#name, TORCH_BOX(&name<Cpu>));
  FASTMETA_OPS(X)
#undef X
  m.impl("soft_cross_entropy_with_grad", TORCH_BOX(&soft_cross_entropy_with_grad));
}

}  // namespace fastmeta
